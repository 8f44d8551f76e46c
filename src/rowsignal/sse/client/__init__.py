"""`client.js` for browsers and its types, built from `clients/js`; serve them with the router."""
