// Tokens by keyboard: each text is one stop of the Tab key, arrow keys move between the tokens that fired,
// and a status line says what the focused or pointed-at token's value is.
(() => {
  const fired = (text) => [...text.querySelectorAll(".r[data-v]")];

  function say(row) {
    const readout = document.querySelector("[data-readout]");
    if (readout) readout.textContent = `${row.innerText.split("\n")[0].trim()}: ${row.dataset.v}`;
  }

  document.addEventListener("keydown", (event) => {
    const row = event.target.closest?.(".r[data-v]");
    if (!row) return;
    const rows = fired(row.closest("[data-rows]"));
    const place = rows.indexOf(row);
    const target = {
      ArrowRight: rows[place + 1],
      ArrowLeft: rows[place - 1],
      Home: rows[0],
      End: rows[rows.length - 1],
    }[event.key];
    if (!target) return;
    event.preventDefault();
    row.tabIndex = -1;
    target.tabIndex = 0;
    target.focus();
  });

  document.addEventListener("focusin", (event) => {
    const row = event.target.closest?.(".r[data-v]");
    if (row) say(row);
  });
})();
