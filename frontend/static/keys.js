// j and k go to the next and the previous feature, or page of the list. Elements with data-key are reached by that key:
// a field is focused, what folds is opened or closed, anything else is clicked. Escape leaves a field.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const field = event.target.closest?.("input, textarea, select, [contenteditable]");
  if (field) {
    if (event.key === "Escape") field.blur();
    return;
  }
  const relation = { j: "next", k: "prev" }[event.key];
  const wanted = document.querySelector(relation ? `a[rel="${relation}"]` : `[data-key="${CSS.escape(event.key)}"]`);
  if (!wanted) return;
  event.preventDefault();
  if (wanted.matches("input")) wanted.focus();
  else if (wanted.matches("details")) wanted.open = !wanted.open;
  else wanted.click();
});
