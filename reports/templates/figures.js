// Charts: drawn by Vega-Lite, and each figure as SVG, CSV or a page to print.

const { charts, config, datasets } = JSON.parse(document.getElementById("figure-data").textContent);
config.font = getComputedStyle(document.body).fontFamily; // Vega measures labels itself and must know the font
const views = new Map();

async function draw(id, chart) {
  const place = document.getElementById(id);
  const options = {
    mode: "vega-lite", renderer: "svg", actions: false,
    tooltip: { disableDefaultStyle: true }, loader: { target: "_blank", rel: "noopener" },
  };
  try {
    views.set(id, (await window.vegaEmbed(place, { ...chart, config, datasets }, options)).view);
  } catch (error) {
    place.textContent = `This figure could not be drawn (${error.message}); its numbers stand in the tables.`;
  }
}

const drawn = Promise.all(Object.entries(charts).map(([id, chart]) => draw(id, chart)));
drawn.then(() => { document.documentElement.dataset.drawn = "yes"; });

/** The panels of a figure side by side in one SVG, the page's colours put in by value. */
function figureSvg(figure) {
  const styles = getComputedStyle(document.documentElement);
  const panels = [...figure.querySelectorAll(".panel")].filter((panel) => panel.offsetParent);
  const parts = [];
  let x = 16, height = 0;
  for (const panel of panels) {
    const svg = panel.querySelector(".chart svg").cloneNode(true);
    const [width, tall] = ["width", "height"].map((side) => Number.parseFloat(svg.getAttribute(side)));
    for (const [key, value] of Object.entries({ x, y: 44, width, height: tall })) svg.setAttribute(key, value);
    const title = panel.querySelector("h3").textContent.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
    parts.push(`<text x="${x}" y="32" font-size="14" font-weight="600" fill="var(--ink)">${title}</text>`, new XMLSerializer().serializeToString(svg));
    x += width + 24;
    height = Math.max(height, tall);
  }
  const open = `<svg xmlns="http://www.w3.org/2000/svg" width="${x}" height="${height + 60}" font-family="Helvetica, Arial, sans-serif">`;
  const page = `<rect width="100%" height="100%" fill="var(--paper)"/>`;
  return [open, page, ...parts, "</svg>"].join("\n").replace(/var\((--[a-z0-9-]+)\)/g, (_, name) => styles.getPropertyValue(name).trim());
}

/** Every row behind a figure, with the panel and the marks that show it. */
function figureCsv(figure) {
  const rows = [...figure.querySelectorAll(".panel")].flatMap((panel) => {
    const title = panel.querySelector("h3").textContent;
    const spec = charts[panel.querySelector(".chart").id];
    return (spec.layer ?? [spec]).flatMap((layer) => {
      const data = layer.data ?? spec.data;
      const values = data?.values ?? datasets[data?.name] ?? [];
      const kept = (layer.transform ?? spec.transform ?? []).reduce(filtered, values);
      return kept.map((row) => ({ panel: title, mark: layer.mark.type ?? layer.mark, ...row }));
    });
  });
  const names = [...new Set(rows.flatMap(Object.keys))];
  return [csvLine(names), ...rows.map((row) => csvLine(names.map((name) => row[name])))].join("\n") + "\n";
}

/** The only transform of our charts: `datum.g === 3`. */
function filtered(rows, { filter }) {
  const [, field, value] = /^datum\.(\w+) === (-?\d+)$/.exec(filter);
  return rows.filter((row) => row[field] === Number(value));
}

for (const button of document.querySelectorAll("button[data-save]")) {
  const figure = button.closest("figure");
  const name = figure.id.replace("figure-", "");
  button.addEventListener("click", () => {
    if (button.dataset.save === "svg") save(`${name}.svg`, "image/svg+xml", figureSvg(figure));
    if (button.dataset.save === "csv") save(`${name}.csv`, "text/csv", figureCsv(figure));
    if (button.dataset.save === "pdf") {
      document.body.classList.add("printing-one");
      figure.classList.add("printed-alone");
      for (let node = figure.parentElement; node !== document.body; node = node.parentElement) node.classList.add("printed-path");
      print();
    }
  });
}
