// Light or dark: the reader's choice is kept in this browser; without one the system decides.
(() => {
  const KEY = "crossdiff-theme";
  const ORDER = ["auto", "light", "dark"];
  const root = document.documentElement;

  function stored() {
    try {
      return ORDER.includes(localStorage.getItem(KEY)) ? localStorage.getItem(KEY) : "auto";
    } catch {
      return "auto"; // storage may be blocked
    }
  }

  function apply(theme) {
    if (theme === "auto") root.removeAttribute("data-theme");
    else root.setAttribute("data-theme", theme);
    for (const name of document.querySelectorAll("[data-theme-name]")) name.textContent = theme;
    document.dispatchEvent(new CustomEvent("crossdiff:theme"));
  }

  apply(stored());

  document.addEventListener("DOMContentLoaded", () => {
    for (const button of document.querySelectorAll("[data-theme-toggle]")) button.hidden = false;
    apply(stored());
  });

  document.addEventListener("click", (event) => {
    if (!event.target.closest?.("[data-theme-toggle]")) return;
    const next = ORDER[(ORDER.indexOf(stored()) + 1) % ORDER.length];
    try {
      localStorage.setItem(KEY, next);
    } catch {
      /* the choice then applies to this page only */
    }
    apply(next);
  });
})();
