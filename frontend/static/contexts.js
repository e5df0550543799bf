// Keyboard and touch access to token values: each text is one Tab stop, arrow keys move between its tokens, a tap
// focuses one, and a status line announces the focused token's value.
(() => {
  const valued = (text) => [...text.querySelectorAll(".r[data-v]")];
  const rowAt = (event) => event.target.closest?.("[data-rows] .r[data-v]");

  function say(text) {
    const readout = document.querySelector("[data-readout]");
    if (readout) readout.textContent = text;
  }

  // The value is shown beside its token, and to the left of it near the right edge, where it would overflow.
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
