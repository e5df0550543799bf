// The strength's slider follows its number and the other way round; Ctrl+Enter in the prompt sends the form.
(() => {
  function number(slider) {
    return slider.form?.elements.namedItem(slider.dataset.follows);
  }

  function reveal() {
    for (const slider of document.querySelectorAll("input[data-follows]")) slider.hidden = false;
  }

  document.addEventListener("input", (event) => {
    const input = event.target;
    if (input.dataset?.follows) {
      number(input).value = input.value;
      return;
    }
    const slider = input.form?.querySelector(`input[data-follows="${CSS.escape(input.name ?? "")}"]`);
    if (slider && input.value !== "") slider.value = input.value;
  });

  document.addEventListener("keydown", (event) => {
    const sends = event.key === "Enter" && (event.ctrlKey || event.metaKey);
    if (sends && event.target.matches?.(".steer-form textarea")) event.target.form.requestSubmit();
  });

  reveal();
  document.addEventListener("htmx:after:swap", reveal);
})();
