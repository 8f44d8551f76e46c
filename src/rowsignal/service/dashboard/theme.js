// Runs before the first paint, so that no page flashes in the wrong colours.
(() => {
  const order = ["auto", "light", "dark"];
  const root = document.documentElement;
  const read = () => {
    try {
      return localStorage.getItem("rowsignal-theme") ?? "auto";
    } catch {
      return "auto"; // storage may be forbidden: the choice then lasts as long as the page
    }
  };
  const apply = (theme) => {
    root.dataset.theme = theme;
    document.querySelector("#theme span")?.replaceChildren(theme);
    dispatchEvent(new Event("rowsignal-theme"));
  };
  const turn = () => {
    const next = order[(order.indexOf(root.dataset.theme) + 1) % order.length];
    try {
      localStorage.setItem("rowsignal-theme", next);
    } catch {
      // as above
    }
    apply(next);
  };
  apply(read());
  addEventListener("DOMContentLoaded", () => {
    apply(root.dataset.theme);
    document.querySelector("#theme").addEventListener("click", turn);
  });
  addEventListener("keydown", (event) => {
    const typing = event.target.matches?.("input, select, textarea, button");
    if (event.key === "t" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) turn();
  });
})();
