// Tokens with a value, by keyboard and by touch: each text is one stop of the Tab key, arrow keys move between its
// tokens, a tap is as good as the focus, and a status line says what the focused token's value is.
(() => {
  const valued = (text) => [...text.querySelectorAll(".r[data-v]")];
  const rowAt = (event) => event.target.closest?.("[data-rows] .r[data-v]");

  function say(text) {
    const readout = document.querySelector("[data-readout]");
    if (readout) readout.textContent = text;
  }

  // The value stands beside its token; near the right edge it would hang out of the page.
  function turn(row) {
    row.dataset.side = row.getBoundingClientRect().left > document.documentElement.clientWidth - 320 ? "end" : "start";
  }

  document.addEventListener("keydown", (event) => {
    const row = rowAt(event);
    if (!row) return;
    const rows = valued(row.closest("[data-rows]"));
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

  document.addEventListener("pointerover", (event) => {
    const row = rowAt(event);
    if (row) turn(row);
  });

  document.addEventListener("click", (event) => rowAt(event)?.focus());

  document.addEventListener("focusin", (event) => {
    const row = rowAt(event);
    if (row) turn(row);
    say(row ? `${row.innerText.split("\n")[0].trim()}: ${row.dataset.v}` : "");
  });

  document.addEventListener("focusout", (event) => {
    if (rowAt(event) && !event.relatedTarget) say("");
  });
})();
