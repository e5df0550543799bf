// Copies the page's address, which contains the whole state of the view.
(() => {
  const show = () => {
    for (const button of document.querySelectorAll("[data-copy-link]")) button.hidden = !navigator.clipboard;
  };

  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("[data-copy-link]");
    if (!button) return;
    const name = button.textContent;
    try {
      await navigator.clipboard.writeText(location.href);
      button.textContent = "Copied";
    } catch {
      button.textContent = "The browser does not allow it";
    }
    setTimeout(() => (button.textContent = name), 1600);
  });

  show();
  document.addEventListener("htmx:after:swap", show);
})();
