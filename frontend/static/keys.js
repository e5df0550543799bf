// j and k go to the next and the previous feature, or page of the list.
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, textarea, select, [contenteditable]");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const wanted = { j: "next", k: "prev" }[event.key];
  const link = wanted && document.querySelector(`a[rel="${wanted}"]`);
  if (!link) return;
  event.preventDefault();
  link.click();
});
