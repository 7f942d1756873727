// The demo page. The only file that touches the document, and only with textContent.
//
// Rows come from the connection step by step; the page is drawn at most once per frame, always from the rows of one
// step. Where the shop is not published, the page becomes a viewer of any publication.

import { connect } from "./rowcast.js";
import { Agreement, Latency, newest, Rate, Tally } from "./shop.js";

/**
 * @typedef {import("./rowcast.js").Row} Row
 * @typedef {import("./rowcast.js").Subscription<any>} Subscription
 * @typedef {import("./shop.js").Order & { updated_at: string }} Order
 */

const NEWEST = 50;
const VIEWER_ROWS = 200;
const CHART_SECONDS = 60;
const SVG = "http://www.w3.org/2000/svg";

const connection = connect("/v1/ws");
const count = new Intl.NumberFormat("en");
const money = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const clock = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** @param {string} id @returns {HTMLElement} */
function $(id) {
  return /** @type {HTMLElement} */ (document.getElementById(id));
}

/** Writes only what changed: most figures are the same in most frames. @param {Element} element @param {string} text */
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** @param {string} name @param {string} [className] @param {string} [text] */
function make(name, className, text) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

/** @param {HTMLElement} row */
function flash(row) {
  if (calm.matches) return;
  row.animate([{ backgroundColor: "var(--flash)" }, { backgroundColor: "transparent" }], { duration: 1_400, easing: "ease-out" });
}

// ── the connection's state ──

let everConnected = false;

function drawState() {
  const { state, error } = connection;
  everConnected ||= state !== "offline";
  const shown = state === "offline" && !everConnected && !error ? "connecting" : state;
  $("state").dataset["state"] = shown;
  $("state").title = error ? error.message : "";
  write(/** @type {Element} */ ($("state").querySelector("span")), shown);
}

connection.onState(drawState);
drawState();

// ── the shop ──

/** @param {Subscription} orders @param {Subscription} customers @param {Subscription} products */
function shop(orders, customers, products) {
  const tally = new Tally();
  const rate = new Rate(CHART_SECONDS + 1);
  const latency = new Latency(200);
  const agreement = new Agreement();
  const tab = crypto.getRandomValues(new Uint32Array(2)).join("-");
  const others = new BroadcastChannel("rowcast-demo");

  /** Orders that changed since the last frame. @type {Set<unknown>} */
  const changed = new Set();

  /** Rows of the table by order. @type {Map<unknown, { element: HTMLElement, cells: HTMLElement[] }>} */
  const lines = new Map();

  /** When the database read what the next frame shows, oldest first. @type {number[]} */
  const unpainted = [];
  let filled = false;
  let scheduled = false;

  orders.onChange((change) => {
    tally.apply(/** @type {any} */ (change));
    if (filled) for (const order of change.rows) changed.add(order["id"]);
  });

  connection.onStep((step) => {
    const { position } = orders;
    if (position) {
      const moment = `${position.epoch}.${position.version}`;
      agreement.mine(moment, tally.fingerprint);
      others.postMessage({ tab, moment, fingerprint: tally.fingerprint });
    }
    // The first snapshots are no changes.
    if (filled && step.changed > 0) {
      rate.add(Date.now(), step.changed);
      if (step.asOf !== null && !document.hidden) unpainted.push(step.asOf);
    }
    filled = filled || (orders.form !== null && customers.form !== null && products.form !== null);
    schedule();
  });

  others.onmessage = ({ data }) => agreement.theirs(data.tab, Date.now(), data.moment, data.fingerprint);

  function schedule() {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(() => {
      scheduled = false;
      draw();
      const painted = unpainted.splice(0);
      // A task that is queued in a frame runs after it was painted.
      if (painted.length > 0) setTimeout(() => painted.forEach((asOf) => latency.add(Date.now() - asOf)));
    });
  }

  function draw() {
    if (!orders.form) return;
    $("shop").hidden = viewer.isOpen;
    drawOrders();
    write($("version"), count.format(connection.position?.version ?? 0));
    write($("order-count"), count.format(orders.rows.length));
    write($("other-counts"), `${count.format(customers.rows.length)} customers, ${count.format(products.rows.length)} products`);
    drawStatuses();
  }

  function drawOrders() {
    const body = $("orders");
    const shown = newest(/** @type {readonly Order[]} */ (orders.rows), NEWEST);
    const ids = new Set(shown.map((order) => order.id));
    for (const [id, line] of lines) {
      if (ids.has(/** @type {number} */ (id))) continue;
      line.element.remove();
      lines.delete(id);
    }
    shown.forEach((order, place) => {
      let line = lines.get(order.id);
      if (line === undefined) {
        const element = make("tr");
        const cells = ["number", "", "", "number", "", "number placed"].map((name) => make("td", name));
        cells[1]?.append(make("span"), make("small"));
        cells[2]?.append(make("span"), make("small"));
        cells[4]?.append(make("span", "badge"));
        element.append(...cells);
        element.dataset["id"] = String(order.id);
        line = { element, cells };
        lines.set(order.id, line);
      }
      fill(line.cells, order);
      if (body.children[place] !== line.element) body.insertBefore(line.element, body.children[place] ?? null);
      if (changed.has(order.id)) flash(line.element);
    });
    changed.clear();
    write($("orders-note"), `${shown.length} of ${count.format(orders.rows.length)}`);
    if (shown[0]) write($("example-id"), String(shown[0].id));
  }

  /** @param {HTMLElement[]} cells @param {Order} order */
  function fill(cells, order) {
    const [id, who, what, total, status, placed] = /** @type {[HTMLElement, HTMLElement, HTMLElement, HTMLElement, HTMLElement, HTMLElement]} */ (cells);
    const customer = customers.get(order.customer_id);
    const product = products.get(order.product_id);
    write(id, String(order.id));
    pair(who, customer?.["name"] ?? `customer ${order.customer_id}`, customer?.["city"] ?? "");
    pair(what, product?.["name"] ?? `product ${order.product_id}`, `× ${order.quantity}`);
    write(total, money.format(Number(order.total)));
    const badge = /** @type {HTMLElement} */ (status.firstElementChild);
    badge.dataset["status"] = order.status;
    write(badge, order.status);
    write(placed, clock.format(new Date(order.placed_at)));
  }

  function drawStatuses() {
    const sums = tally.byStatus;
    const greatest = Math.max(1, ...sums.map((sum) => sum.amount));
    const list = $("statuses");
    sums.forEach((sum, place) => {
      let line = list.children[place];
      if (line === undefined) {
        line = make("div");
        const bar = make("div", "bar");
        bar.append(make("i"));
        line.append(make("dt"), make("dd", "count"), make("dd", "amount"), bar);
        list.append(line);
      }
      const [name, orderCount, amount, bar] = /** @type {HTMLElement[]} */ ([...line.children]);
      if (!name || !orderCount || !amount || !bar) return;
      /** @type {HTMLElement} */ (line).dataset["status"] = sum.status;
      write(name, sum.status);
      write(orderCount, count.format(sum.count));
      write(amount, money.format(sum.amount));
      /** @type {HTMLElement} */ (bar.firstElementChild).style.width = `${(100 * sum.amount) / greatest}%`;
    });
    while (list.children.length > sums.length) list.lastElementChild?.remove();
    const revenue = sums.reduce((sum, { status, amount }) => (status === "cancelled" ? sum : sum + amount), 0);
    write($("revenue"), money.format(revenue));
  }

  /** What changes with time and not with rows; also what would flicker if it were drawn with every step. */
  function drawClockwork() {
    const now = Date.now();
    const seconds = rate.last(now);
    const past = seconds.slice(-6, -1);
    const perSecond = (/** @type {"rows" | "steps"} */ what) => past.reduce((sum, each) => sum + each[what], 0) / past.length;
    write($("rows-per-second"), perSecond("rows").toFixed(1));
    write($("steps-per-second"), `in ${perSecond("steps").toFixed(1)} steps/s`);
    drawChart(seconds);

    const median = latency.quantile(0.5);
    const slow = latency.quantile(0.95);
    if (median !== null && slow !== null) {
      write($("latency"), String(median));
      write($("latency-note"), median < 0 ? "the clocks differ" : `95 % within ${slow} ms`);
    }
    const { position } = connection;
    if (position) {
      write($("as-of"), position.asOf === null ? "" : `as of ${clock.format(position.asOf)}`);
      $("as-of").title = `epoch ${position.epoch}`;
    }
    if (orders.position) {
      write($("fingerprint"), tally.fingerprint.replace(/(.{4})(?=.)/g, "$1 "));
      write($("fingerprint-note"), `of ${count.format(tally.count)} orders at ${count.format(orders.position.version)}`);
      drawIdenticon(tally.fingerprint);
    }
    drawVerdict(agreement.tabs(now));
  }

  /** @param {number} tabs */
  function drawVerdict(tabs) {
    const { compared, different } = agreement;
    const verdict = $("verdict");
    if (different > 0) {
      verdict.dataset["verdict"] = "differ";
      write(verdict, `${count.format(different)} of ${count.format(compared)} versions differ`);
    } else if (tabs > 0 && compared > 0) {
      verdict.dataset["verdict"] = "agree";
      write(verdict, `${tabs === 1 ? "Both tabs" : `All ${tabs + 1} tabs`} agree on ${count.format(compared)} versions`);
    } else {
      verdict.dataset["verdict"] = "alone";
      write(verdict, "Every tab computes this from its own rows. Tabs of this browser compare it, version by version.");
    }
  }

  /** @param {{ rows: number }[]} seconds */
  function drawChart(seconds) {
    const bars = seconds.slice(-CHART_SECONDS);
    const greatest = niceTop(Math.max(...bars.map((bar) => bar.rows)));
    const chart = $("chart");
    while (chart.children.length < bars.length) chart.append(document.createElementNS(SVG, "rect"));
    const width = 600 / bars.length;
    bars.forEach((bar, place) => {
      const height = (100 * bar.rows) / greatest;
      const rect = /** @type {Element} */ (chart.children[place]);
      const box = { x: place * width + width * 0.14, y: 100 - height, width: width * 0.72, height };
      for (const [name, value] of Object.entries(box)) rect.setAttribute(name, value.toFixed(2));
    });
    write($("chart-top"), count.format(greatest));
  }

  drawClockwork();
  setInterval(drawClockwork, 500);
  // Beside the steps: states and errors of the three are drawn too.
  for (const subscription of [orders, customers, products]) subscription.onChange(schedule);
}

/** Writes a cell of a name and something beside it. @param {HTMLElement} cell @param {string} name @param {string} beside */
function pair(cell, name, beside) {
  write(/** @type {Element} */ (cell.firstElementChild), name);
  write(/** @type {Element} */ (cell.lastElementChild), beside);
}

/** The next of 1, 2, 5, 10, 20, 50 … @param {number} value */
function niceTop(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 5)));
  return [1, 2, 5, 10].map((step) => step * power).find((top) => top >= value) ?? value;
}

/** A small picture of a fingerprint, symmetrical: easier to compare than digits. @param {string} fingerprint */
function drawIdenticon(fingerprint) {
  const picture = $("identicon");
  const bits = BigInt(`0x${fingerprint}`);
  const cells = [];
  for (let row = 0; row < 5; row += 1) {
    for (let column = 0; column < 5; column += 1) {
      const place = BigInt(row * 3 + Math.min(column, 4 - column));
      if (((bits >> (place * 4n)) & 1n) === 0n) continue;
      const cell = document.createElementNS(SVG, "rect");
      for (const [name, value] of Object.entries({ x: column + 0.04, y: row + 0.04, width: 0.92, height: 0.92, rx: 0.15 })) {
        cell.setAttribute(name, String(value));
      }
      cells.push(cell);
    }
  }
  picture.replaceChildren(...cells);
}

// ── any publication ──

const viewer = {
  /** @type {Subscription | null} */
  subscription: null,

  get isOpen() {
    return !$("viewer").hidden;
  },

  /** @param {string} hint */
  open(hint) {
    $("viewer").hidden = false;
    $("shop").hidden = true;
    if (hint) write($("viewer-hint"), hint);
  },

  /** @param {string} channel */
  show(channel) {
    this.subscription?.close();
    const subscription = connection.subscribe(channel);
    this.subscription = subscription;
    /** @type {HTMLInputElement} */ ($("viewer-channel")).value = channel;
    $("viewer-head").replaceChildren();
    $("viewer-rows").replaceChildren();
    /** @type {Set<Row>} */
    const changed = new Set();
    let filled = false;
    let scheduled = false;
    const draw = () => {
      scheduled = false;
      if (this.subscription !== subscription) return;
      this.draw(subscription, changed);
      changed.clear();
    };
    subscription.onChange((change) => {
      if (filled) for (const row of change.rows) changed.add(row);
      filled ||= subscription.form !== null;
      if (!scheduled) requestAnimationFrame(draw);
      scheduled = true;
    });
    draw();
  },

  /** @param {Subscription} subscription @param {Set<Row>} changed */
  draw({ rows, form, state, error, channel }, changed) {
    const columns = form?.columns ?? [];
    const note = error ? `${channel}: ${error.message}` : `${state}, ${count.format(rows.length)} rows`;
    write($("viewer-note"), rows.length > VIEWER_ROWS ? `${note}, the first ${VIEWER_ROWS} shown` : note);
    const head = columns.map((column) => {
      const cell = make("th", "", column.name);
      cell.append(make("small", "", column.type));
      return cell;
    });
    $("viewer-head").replaceChildren(...head);
    const body = $("viewer-rows");
    const shown = rows.slice(0, VIEWER_ROWS);
    while (body.children.length > shown.length) body.lastElementChild?.remove();
    shown.forEach((row, place) => {
      const line = /** @type {HTMLElement} */ (body.children[place] ?? body.appendChild(make("tr")));
      while (line.children.length > columns.length) line.lastElementChild?.remove();
      columns.forEach((column, at) => write(line.children[at] ?? line.appendChild(make("td")), textOf(row[column.name])));
      if (changed.has(row)) flash(line);
    });
  },
};

/** @param {unknown} value */
function textOf(value) {
  if (value === null || value === undefined) return "";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

/** A channel after `#channel=` opens the viewer. */
function followHash() {
  const channel = location.hash.startsWith("#channel=") ? decodeURIComponent(location.hash.slice("#channel=".length)) : "";
  if (channel) {
    viewer.open("");
    viewer.show(channel);
  } else if (viewer.isOpen && orders.form) {
    viewer.subscription?.close();
    viewer.subscription = null;
    $("viewer").hidden = true;
    $("shop").hidden = false;
  }
}

$("viewer-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const channel = /** @type {HTMLInputElement} */ ($("viewer-channel")).value.trim();
  if (channel) location.hash = `channel=${encodeURIComponent(channel)}`;
});

const orders = connection.subscribe("orders");
const customers = connection.subscribe("customers");
const products = connection.subscribe("products");

orders.onChange(() => {
  if (orders.state === "ended" && !viewer.isOpen) {
    viewer.open("The demo's shop is not published here. Type the name of a publication to see it live.");
  }
});

shop(orders, customers, products);
addEventListener("hashchange", followHash);
followHash();

// For tests, and for whoever opens the console.
Object.assign(window, { rowcastDemo: { connection, orders, customers, products } });
