"""`client.js` for browsers and its types, made from `clients/js`; serve them beside the router."""
