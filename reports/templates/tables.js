// Tables: sorted by their headings, saved as CSV, copied with every digit.

const shown = (cell) => cell.dataset.v ?? cell.textContent.trim();

for (const heading of document.querySelectorAll("table.data th")) {
  const button = element("button", { type: "button" });
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

const visible = (row) => getComputedStyle(row).display !== "none";

for (const button of document.querySelectorAll("button[data-table]")) {
  button.addEventListener("click", () => {
    const table = document.getElementById(button.dataset.table);
    const lines = [...table.rows].filter(visible).map((row) => [...row.cells].map(shown));
    if (button.dataset.do === "copy") return copy(lines.map((line) => line.join("\t")).join("\n"), button);
    return save(`${table.id.replace("table-", "")}.csv`, "text/csv", lines.map(csvLine).join("\n") + "\n");
  });
}
