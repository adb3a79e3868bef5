const { charts, config, datasets } = JSON.parse(document.getElementById("figure-data").textContent);
config.font = getComputedStyle(document.body).fontFamily; // Vega measures labels itself and must know the font

async function draw(id, chart) {
  const place = document.getElementById(id);
  const options = { mode: "vega-lite", renderer: "svg", actions: false, tooltip: { disableDefaultStyle: true } };
  try {
    await window.vegaEmbed(place, { ...chart, config, datasets }, options);
  } catch (error) {
    place.textContent = `This figure could not be drawn (${error.message}); its numbers stand in the tables.`;
  }
}

for (const [id, chart] of Object.entries(charts)) draw(id, chart);

const shown = (cell) => cell.dataset.v ?? cell.textContent.trim();

for (const heading of document.querySelectorAll("th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...heading.childNodes);
  heading.append(button);
  button.addEventListener("click", () => sort(heading));
}

function sort(heading) {
  const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const column = [...heading.parentElement.children].indexOf(heading);
  const body = heading.closest("table").tBodies[0];
  const key = (row) => shown(row.cells[column]);
  const order = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const difference = Number(x) - Number(y);
    return sign * (Number.isNaN(difference) ? x.localeCompare(y, "en", { numeric: true }) : difference);
  };
  body.append(...[...body.rows].sort(order));
  for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
}

for (const button of document.querySelectorAll("button.csv")) {
  button.addEventListener("click", () => {
    const table = document.getElementById(button.dataset.table);
    const quoted = (text) => /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    const lines = [...table.rows].map((row) => [...row.cells].map((cell) => quoted(shown(cell))).join(","));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
    link.download = `${table.id.replace("table-", "")}.csv`;
    link.click();
    URL.revokeObjectURL(link.href);
  });
}

// Paper shows everything: folded parts open for the printer and close again.
const opened = [];
addEventListener("beforeprint", () => document.querySelectorAll("details:not([open])").forEach((fold) => { fold.open = true; opened.push(fold); }));
addEventListener("afterprint", () => opened.splice(0).forEach((fold) => { fold.open = false; }));
