// Draws the figures that the server sends as JSON, in the theme's colours.
(() => {
  const probe = document.createElement("span");
  probe.hidden = true;

  /** The current colour of a CSS custom property, in a form that Plotly accepts. */
  function colour(name) {
    document.body.append(probe);
    probe.style.color = `var(${name})`;
    const value = getComputedStyle(probe).color;
    probe.remove();
    return value;
  }

  function dressed(figure) {
    const ink = colour("--ink");
    const muted = colour("--muted");
    const edge = colour("--edge");
    const data = figure.data.map((trace) => {
      const shade = colour(trace.meta?.colour ?? "--muted");
      return { ...trace, marker: { ...trace.marker, color: shade }, line: { ...trace.line, color: shade, width: 1.6 } };
    });
    const axis = { gridcolor: edge, linecolor: muted, zerolinecolor: edge, tickfont: { color: muted, size: 11 }, automargin: true };
    const titled = (given) => ({ ...axis, ...given, title: { ...given?.title, font: { color: muted, size: 12 } } });
    const layout = {
      ...figure.layout,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: getComputedStyle(document.body).fontFamily },
      xaxis: titled(figure.layout.xaxis),
      yaxis: titled(figure.layout.yaxis),
      hoverlabel: { ...figure.layout.hoverlabel, bgcolor: colour("--surface"), bordercolor: edge, font: { color: ink } },
    };
    for (const trace of data) if (trace.type !== "bar") delete trace.marker.line;
    return { data, layout };
  }

  /** Fetches the figure from the server; the caller caches it. */
  async function load(place) {
    const answer = await fetch(place.dataset.plot);
    if (!answer.ok) throw new Error(answer.statusText);
    const figure = await answer.json();
    place.textContent = "";
    return figure;
  }

  async function draw(place) {
    let figure;
    try {
      figure = await (place.figure ??= load(place));
    } catch {
      place.textContent = "The chart could not be loaded; reload the page to try again.";
      return;
    }
    const { data, layout } = dressed(figure);
    await window.Plotly.react(place, data, layout, { displayModeBar: false, responsive: true });
    place.removeAllListeners("plotly_click");
    place.on("plotly_click", ({ points }) => {
      const address = points[0]?.customdata?.[0];
      if (address) location.assign(address);
    });
  }

  const drawAll = () => document.querySelectorAll("[data-plot]").forEach((place) => draw(place));

  drawAll();
  document.addEventListener("crossdiff:theme", drawAll);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  document.addEventListener("htmx:after:swap", drawAll);
})();
