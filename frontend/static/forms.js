// Forms: keeps the strength's slider and number in step, submits a prompt on Ctrl+Enter, and shows an error while
// keeping the typed text when the explorer does not respond.
(() => {
  if (window.crossdiffForms) return; // several parts of a page include this script
  window.crossdiffForms = true;

  const SILENCE = "The explorer does not answer. What you typed is still here; try again in a moment.";

  function reveal() {
    for (const slider of document.querySelectorAll("input[data-follows]")) slider.hidden = false;
  }

  function show(form, message) {
    const place = form?.querySelector("[data-form-error]");
    if (place) place.textContent = message;
  }

  document.addEventListener("input", (event) => {
    const input = event.target;
    if (input.dataset?.follows) {
      input.form.elements.namedItem(input.dataset.follows).value = input.value;
      return;
    }
    const slider = input.form?.querySelector(`input[data-follows="${CSS.escape(input.name ?? "")}"]`);
    if (slider && input.value !== "") slider.value = input.value;
  });

  document.addEventListener("keydown", (event) => {
    const sends = event.key === "Enter" && (event.ctrlKey || event.metaKey);
    if (sends && event.target.matches?.(".steer-form textarea, .label-form textarea")) event.target.form.requestSubmit();
  });

  document.addEventListener("htmx:before:request", (event) => show(event.target.closest?.("form"), ""));
  document.addEventListener("htmx:error", (event) => show(event.target.closest?.("form"), SILENCE));
  document.addEventListener("htmx:after:swap", reveal);
  reveal();
})();
