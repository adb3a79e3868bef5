// What the other scripts share, and the page's own controls: theme, architectures, contexts, print.

function element(tag, properties = {}) {
  return Object.assign(document.createElement(tag), properties);
}

/** Text into the clipboard; a file opened from disk may have none, then through a selection. */
async function copy(text, button) {
  const said = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = element("textarea", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = said; }, 1200);
}

function save(name, type, content) {
  const link = element("a", { href: URL.createObjectURL(new Blob([content], { type })), download: name });
  link.click();
  URL.revokeObjectURL(link.href);
}

function csvLine(fields) {
  const quoted = (field) => {
    const text = String(field ?? "");
    // A leading = + - @ would be a formula in a spreadsheet; numbers keep theirs.
    const safe = /^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text;
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return fields.map(quoted).join(",");
}

for (const choice of document.querySelectorAll("input[name=theme]")) {
  choice.addEventListener("change", () => { document.documentElement.dataset.theme = choice.value; });
}

// An architecture or a context length that is switched off goes from panels, marks, cards and table rows alike.
// Marks are found by their colour, which is the architecture's own CSS variable.
const hidden = element("style");
document.head.append(hidden);

function applyChoices() {
  const off = [...document.querySelectorAll(".choices input[type=checkbox]:not(:checked)")];
  const rules = off.flatMap(({ dataset: { kind, key, color } }) => [
    `[data-${kind}="${CSS.escape(key)}"]`,
    ...["fill", "stroke"].map((name) => `.chart [${name}="var(--${kind}-${color})"]`),
  ]);
  hidden.textContent = rules.length ? `${rules.join(", ")} { display: none !important; }` : "";
}

for (const box of document.querySelectorAll(".choices input[type=checkbox]")) box.addEventListener("change", applyChoices);

// Paper shows everything: folded parts open for the printer and close again.
const opened = [];
addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("details:not([open])")) { fold.open = true; opened.push(fold); }
});
addEventListener("afterprint", () => {
  for (const fold of opened.splice(0)) fold.open = false;
  for (const one of document.querySelectorAll(".printed-alone, .printed-path")) one.classList.remove("printed-alone", "printed-path");
  document.body.classList.remove("printing-one");
});
