// Optima of L = E + (A N^-alpha + B D^-beta)^gamma under FLOPs(N, D) = cost(N) D, in x = ln N. The same rules
// as sweeps.laws: optima.py, inference_cost.py, intervals.py.

const SMALLEST = Math.log(10);

/** ln FLOPs a token at x, and its slope: a parabola, continued by lines. */
function tokenCost(curve, x) {
  const { center, coefficients: [c0, c1, c2], low, high, slopes } = curve;
  const at = x - center;
  const inside = Math.min(Math.max(at, low), high);
  const value = c0 + inside * (c1 + inside * c2);
  if (at < low) return [value + slopes[0] * (at - low), slopes[0]];
  if (at > high) return [value + slopes[1] * (at - high), slopes[1]];
  return [value, c1 + 2 * c2 * inside];
}

/** The best model of `logC` FLOPs, as x, ln D and loss; null where the law has no optimum there. */
function optimumAt(law, curve, logC) {
  const [lnA, alpha, lnB, beta, E, gamma] = law;
  if (!(alpha > 0 && beta > 0)) return null;
  const shift = lnB + Math.log(beta) - lnA - Math.log(alpha);
  const balance = (x) => { // ln of the token term's slope over the size term's: rises through 0 at the optimum
    const [cost, slope] = tokenCost(curve, x);
    return slope > 0 ? shift + beta * (cost - logC) + Math.log(slope) + alpha * x : -Infinity;
  };
  let low = SMALLEST, high = logC - Math.log(60);
  if (!(balance(low) < 0 && balance(high) > 0)) return null;
  for (let i = 0; i < 60 && high - low > 1e-12; i++) {
    const middle = (low + high) / 2;
    if (balance(middle) < 0) low = middle; else high = middle;
  }
  const x = (low + high) / 2;
  const logD = logC - tokenCost(curve, x)[0];
  const rest = Math.exp(lnA - alpha * x) + Math.exp(lnB - beta * logD);
  return { x, logD, rest, loss: E + rest ** gamma };
}

/** Least training plus weighted serving FLOPs at the loss of `start`: a scan, then golden sections. */
function cheapestToServe(law, curve, start, servingCost, weight) {
  const [lnA, alpha, lnB, beta] = law;
  const tokens = (x) => (lnB - Math.log(start.rest - Math.exp(lnA - alpha * x))) / beta; // nan where out of reach
  const train = (x) => Math.exp(tokenCost(curve, x)[0] + tokens(x));
  const total = (x) => { const cost = train(x) + weight * servingCost(x); return Number.isNaN(cost) ? Infinity : cost; };
  const WIDTH = Math.log(1e3), STEPS = 80, step = (2 * WIDTH) / (STEPS - 1);
  let best = 1, lowest = Infinity;
  for (let i = 0; i < STEPS; i++) {
    const cost = total(start.x - WIDTH + i * step);
    if (cost < lowest) { lowest = cost; best = i; }
  }
  best = Math.min(Math.max(best, 1), STEPS - 2);
  let low = start.x - WIDTH + (best - 1) * step, high = low + 2 * step;
  const golden = (Math.sqrt(5) - 1) / 2;
  for (let i = 0; i < 45; i++) {
    const left = high - golden * (high - low), right = low + golden * (high - low);
    if (total(left) <= total(right)) high = right; else low = left;
  }
  const x = (low + high) / 2, served = servingCost(x);
  const plain = Math.exp(tokenCost(curve, start.x)[0] + start.logD) + weight * servingCost(start.x);
  return { x, logD: tokens(x), train: train(x), serve: served, saving: 1 - (train(x) + weight * served) / plain };
}

/** FLOPs to generate `tokens` tokens, against x: each size's decode steps, joined by a parabola in the logarithms. */
function servingCostOf(decode, tokens, prompt, answer) {
  if (!decode) return (x) => 2 * Math.exp(x) * tokens * (1 + prompt / answer);
  const step = (i, seen) => decode.fixed[i] + decode.perSeen[i] * seen;
  const x = decode.N.map(Math.log);
  const y = x.map((_, i) => Math.log(
    step(i, prompt + Math.floor(answer / 2)) + (step(i, Math.floor(prompt / 2)) * prompt) / answer));
  const center = x.reduce((sum, value) => sum + value, 0) / x.length;
  const places = x.map((value) => value - center);
  const sizes = new Set(x).size;
  const coefficients = sizes > 1 ? polynomial(places, y, Math.min(sizes - 1, 2)) : [y[0], 1, 0];
  const [low, high] = [Math.min(...places), Math.max(...places)];
  const slope = (at) => Math.min(Math.max(coefficients[1] + 2 * coefficients[2] * at, 0.5), 1.5);
  const curve = { center, coefficients, low, high, slopes: [slope(low), slope(high)] };
  return (at) => tokens * Math.exp(tokenCost(curve, at)[0]);
}

/** Least-squares polynomial of degree 1 or 2 through centred points, by the normal equations. */
function polynomial(x, y, degree) {
  const size = degree + 1;
  const rows = Array.from({ length: size }, (_, i) => [
    ...Array.from({ length: size }, (_, j) => x.reduce((sum, v) => sum + v ** (i + j), 0)),
    x.reduce((sum, v, k) => sum + y[k] * v ** i, 0),
  ]);
  for (let i = 0; i < size; i++) {
    for (let j = 0; j < size; j++) {
      if (j === i) continue;
      const factor = rows[j][i] / rows[i][i];
      rows[j] = rows[j].map((value, k) => value - factor * rows[i][k]);
    }
  }
  const solved = rows.map((row, i) => row[size] / row[i]);
  return [...solved, 0, 0].slice(0, 3);
}

/** The central interval of the draws; none where those without a value could fill a tail. */
function interval(draws, level) {
  const tail = (1 - level) / 2;
  const good = draws.filter(Number.isFinite).sort((a, b) => a - b);
  if (draws.length < 2 || draws.length - good.length > tail * draws.length) return [NaN, NaN];
  return [tail, 1 - tail].map((q) => {
    const at = q * (good.length - 1), below = Math.floor(at);
    return good[below] + (at - below) * ((good[below + 1] ?? good[below]) - good[below]);
  });
}

/** The fitted parameters first, then every draw: arrays [lnA, alpha, lnB, beta, E, gamma]. */
function rowsOf(group) {
  if (!group.draws) return [group.point];
  const columns = group.draws.columns.map((column) => typeof column === "number" ? null : floats(column));
  const draw = (i) => columns.map((column, j) => column ? column[i] : group.draws.columns[j]);
  return [group.point.map((value) => value ?? NaN), ...Array.from({ length: group.draws.count }, (_, i) => draw(i))];
}

function floats(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
}
