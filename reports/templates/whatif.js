// The panel "What if": reads the form, asks every law, writes one card an architecture.

function whatIfPanel(panel, data) {
  const form = panel.querySelector("form");
  const [verdict, cards] = [panel.querySelector(".verdict-line"), panel.querySelector(".cards")];
  const rows = new Map(data.groups.map((group) => [group, rowsOf(group)]));

  function ask() {
    const question = readQuestion(form, data);
    if (!question) {
      verdict.textContent = "Mend the marked field to see an answer.";
      cards.replaceChildren();
      return;
    }
    const answers = closest(data.groups, question.context).map((group) => answer(group, rows.get(group), question, data));
    verdict.textContent = [whatItIs(question), ...compareAnswers(answers, data)].join(" ");
    cards.replaceChildren(...answers.map((found) => card(found, question, data)));
  }

  let waiting = 0;
  form.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(ask, 120); });
  form.addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  form.addEventListener("reset", () => setTimeout(ask));
  ask();
}

/** The form as numbers; null, with the culprit marked, where a field makes no sense. */
function readQuestion(form, data) {
  let sound = true;
  const number = (name, test, otherwise) => {
    const field = form.elements[name];
    const text = field.value.trim().replace(/(?<=\d)[ ,_](?=\d{3})/g, "");
    const value = text === "" ? otherwise : Number(text);
    const good = value !== undefined && Number.isFinite(value) && test(value);
    field.setAttribute("aria-invalid", String(!good));
    form.querySelector(`#${field.id}-error`).textContent = good ? "" : field.dataset.wrong;
    sound &&= good;
    return value;
  };
  const above = (value) => value > 0, share = (value) => value > 0 && value <= 100;
  const context = number("context", above);
  const measured = form.elements.device.value === "measured";
  const question = {
    budget: number("budget", above),
    context,
    tokens: number("tokens", (value) => value >= 0, 0),
    prompt: number("prompt", (value) => value >= 0, Math.floor(context / 2)),
    answer: number("answer", (value) => value >= 1, Math.max(1, context - Math.floor(context / 2))),
    mfu: number("mfu", share) / 100,
    servingMfu: number("serving-mfu", share) / 100,
    price: number("price", (value) => value >= 0, 0),
  };
  form.elements.mfu.closest(".field").hidden = measured; // what was measured is what it is
  const peak = measured ? data.measured.flopsPerSecond / question.mfu : data.accelerators[form.elements.device.value];
  question.trainPerHour = 3600 * peak * question.mfu;
  question.servePerHour = 3600 * peak * question.servingMfu;
  question.flops = form.elements.unit.value === "hours" ? question.budget * question.trainPerHour : question.budget;
  question.hours = form.elements.unit.value === "hours" ? question.budget : null;
  question.measured = measured;
  question.device = form.elements.device.selectedOptions[0].dataset.name;
  return sound ? question : null;
}

/** Each architecture's law of the nearest context length that was trained. */
function closest(groups, context) {
  const best = new Map();
  const distance = (group) => Math.abs(Math.log(group.context / context));
  for (const group of groups) {
    const rival = best.get(group.arch);
    if (!rival || distance(group) < distance(rival)) best.set(group.arch, group);
  }
  return [...best.values()].sort((a, b) => a.color - b.color);
}

/** Estimates as {value, low, high}, and the losses of fit and draws for the comparison. */
function answer(group, rows, question, data) {
  const logC = Math.log(question.flops);
  const serving = servingCostOf(data.decode[group.arch], question.tokens, question.prompt, question.answer);
  const weight = question.mfu / question.servingMfu; // serving FLOPs cost more hours where the device is less busy
  const found = rows.map((law) => {
    const best = optimumAt(law, group.tokenCost, logC);
    return best && question.tokens > 0
      ? { best, lean: cheapestToServe(law, group.tokenCost, best, serving, weight) } : { best };
  });
  const estimate = (read) => {
    const values = found.map((entry) => entry.best ? read(entry) : NaN);
    const [low, high] = interval(values.slice(1), data.level);
    return { value: values[0], low, high };
  };
  const result = {
    group,
    losses: found.map((entry) => entry.best ? entry.best.loss : NaN),
    N: estimate(({ best }) => Math.exp(best.x)),
    D: estimate(({ best }) => Math.exp(best.logD)),
    loss: estimate(({ best }) => best.loss),
  };
  if (!(question.tokens > 0)) return result;
  return {
    ...result,
    serving: {
      N: estimate(({ lean }) => Math.exp(lean.x)),
      D: estimate(({ lean }) => Math.exp(lean.logD)),
      train: estimate(({ lean }) => lean.train),
      serve: estimate(({ lean }) => lean.serve),
      total: estimate(({ lean }) => lean.train + lean.serve),
      hours: estimate(({ lean }) => lean.train / question.trainPerHour + lean.serve / question.servePerHour),
      saving: estimate(({ lean }) => lean.saving),
    },
  };
}

function whatItIs(question) {
  const hours = question.flops / question.trainPerHour;
  const price = question.price ? `, ${asAmount(hours * question.price)} at your price` : "";
  return `A training budget of ${asFlops(question.flops)} FLOPs: ${asAmount(hours)} hours of ${question.device}${question.measured ? " at its measured speed" : ` at ${asShare(question.mfu)} of its peak`}${price}.`;
}

/** Each pair's difference of the best losses; the draws of two architectures are independent. */
function compareAnswers(answers, data) {
  const known = answers.filter(({ loss }) => Number.isFinite(loss.value)).sort((a, b) => a.loss.value - b.loss.value);
  const [best, ...others] = known;
  return others.map((other) => {
    const count = Math.min(best.losses.length, other.losses.length);
    const gaps = other.losses.slice(0, count).map((loss, i) => loss - best.losses[i]);
    const [low, high] = interval(gaps.slice(1), data.level);
    const names = [best.group.label, other.group.label];
    const span = Number.isFinite(low) ? `${asLoss(low)} to ${asLoss(high)}` : "no interval";
    const decided = low > 0;
    const doubted = [best, other].filter(({ group }) => group.doubt).map(({ group }) => group.label);
    const doubt = doubted.length ? ` But the law of the ${doubted.join(" and of the ")} is doubtful.` : "";
    return `The best loss of the ${names[0]} is ${asLoss(gaps[0])} ${data.unit} below that of the ${names[1]} (${span})${decided ? "." : ", which decides nothing."}${doubt}`;
  });
}

function card(found, question, data) {
  const { group } = found;
  const node = element("article", { className: "card" });
  node.style.setProperty("--arch", `var(--arch-${group.color % 6})`);
  node.dataset.arch = group.arch;
  node.append(element("h3", { textContent: group.label }));
  const doubts = notesOn(found, question, data);
  if (!Number.isFinite(found.N.value)) {
    node.append(element("p", { textContent: "Its law has no best size at this budget." }), notes(doubts));
    return node;
  }
  const trainHours = question.flops / question.trainPerHour;
  const plain = [
    ["N*", "Parameters", found.N, asCount],
    ["D*", "Training tokens", found.D, asCount],
    ["loss", `Loss (${data.unit})`, found.loss, asLoss],
    ...(data.bytesPerToken ? [["bpb", "Bits per byte", scaled(found.loss, 1 / Math.LN2 / data.bytesPerToken), asLoss]] : []),
    ["train", "Training cost (FLOPs)", { value: question.flops }, asFlops],
    ["hours", "Training cost (hours)", { value: trainHours }, asAmount],
    ...(question.price ? [["price", "Training cost (your currency)", { value: trainHours * question.price }, asAmount]] : []),
  ];
  node.append(quantities(plain));
  if (found.serving) {
    const { serving } = found;
    node.append(element("h4", { textContent: `Cheapest with ${asCount(question.tokens)} tokens served` }), quantities([
      ["serving-N", "Parameters", serving.N, asCount],
      ["serving-D", "Training tokens", serving.D, asCount],
      ["serving-train", "Training (FLOPs)", serving.train, asFlops],
      ["serving-serve", "Serving (FLOPs)", serving.serve, asFlops],
      ["serving-total", "Total cost (FLOPs)", serving.total, asFlops],
      ["serving-hours", "Total cost (hours)", serving.hours, asAmount],
      ...(question.price ? [["serving-price", "Total cost (your currency)", scaled(serving.hours, question.price), asAmount]] : []),
      ["serving-saving", "Saved against N*, D*", serving.saving, asShare],
    ]));
  }
  node.append(notes(doubts), copyButton(node, group.label));
  return node;
}

function scaled(estimate, factor) {
  return { value: estimate.value * factor, low: estimate.low * factor, high: estimate.high * factor };
}

/** Names and numbers; `data-v` holds a number in full for the clipboard. */
function quantities(rows) {
  const list = element("dl");
  for (const [key, name, { value, low, high }, form] of rows) {
    const number = element("dd");
    const shown = element("data", { value: String(value), textContent: form(value) });
    shown.dataset.key = key;
    if (low !== undefined) Object.assign(shown.dataset, { low: String(low), high: String(high) });
    number.append(shown);
    if (low !== undefined) {
      const span = Number.isFinite(low) ? `${form(low)} to ${form(high)}` : "no interval";
      number.append(" ", element("span", { className: "quiet", textContent: span }));
    }
    list.append(element("dt", { textContent: name }), number);
  }
  return list;
}

/** What a reader of the numbers must know. */
function notesOn(found, question, data) {
  const { group, N } = found, said = [];
  const factor = question.flops / group.largestBudget;
  if (group.doubt) said.push(`Doubtful: ${group.doubt}.`);
  if (factor > 1.001) said.push(`An extrapolation: ${asAmount(factor)} times the largest budget that was trained.`);
  if (N.value < group.sizes[0] || N.value > group.sizes[1]) said.push(`No such size was trained (${asCount(group.sizes[0])} to ${asCount(group.sizes[1])}).`);
  if (group.context !== question.context) said.push(`Trained at context ${group.context.toLocaleString("en")}, the nearest there is: its law stands in, serving is counted at yours.`);
  if (!group.draws) said.push("Without resamples there are no intervals.");
  if (question.tokens > 0 && !data.decode[group.arch]) said.push("Serving at 2 N FLOPs a token: the shapes of its models are not known.");
  return said;
}

function notes(sentences) {
  const list = element("ul");
  list.append(...sentences.map((textContent) => element("li", { textContent })));
  return list;
}

function copyButton(node, label) {
  const button = element("button", { type: "button", className: "small", textContent: "Copy numbers" });
  button.setAttribute("aria-label", `Copy the numbers of the ${label}`);
  button.addEventListener("click", () => {
    const lines = [...node.querySelectorAll("data")].map((n) => [n.dataset.key, n.value, n.dataset.low ?? "", n.dataset.high ?? ""].join("\t"));
    copy(["quantity\tvalue\tlow\thigh", ...lines].join("\n"), button);
  });
  return button;
}
