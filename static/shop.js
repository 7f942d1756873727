// The shop's figures, kept up to date change by change. Pure: it knows neither the page nor the connection.

/** @typedef {{ id: number, customer_id: number, product_id: number, quantity: number, total: string, status: string, placed_at: string }} Order */

export const STATUSES = ["open", "paid", "packed", "shipped", "cancelled"];

/** Money is summed in whole ten-thousandths: numeric has no rounding, so the sums have none. */
const SCALE = 4;

/** Orders and their totals by status, and a fingerprint of all of them: each change costs its own rows only. */
export class Tally {
  /** @type {Map<number, { status: string, amount: bigint, high: number, low: number }>} */
  #orders = new Map();

  /** @type {Map<string, { count: number, amount: bigint }>} */
  #byStatus = new Map();
  #high = 0;
  #low = 0;

  /** @param {{ rows: readonly Order[], gone: readonly Order[] }} change */
  apply({ rows, gone }) {
    for (const order of gone) this.#take(order.id);
    for (const order of rows) {
      this.#take(order.id);
      const [high, low] = fingerprint(order);
      const entry = { status: order.status, amount: tenThousandths(order.total), high, low };
      this.#orders.set(order.id, entry);
      this.#high = (this.#high + high) >>> 0;
      this.#low = (this.#low + low) >>> 0;
      const sum = this.#byStatus.get(order.status) ?? { count: 0, amount: 0n };
      this.#byStatus.set(order.status, { count: sum.count + 1, amount: sum.amount + entry.amount });
    }
  }

  /** @param {number} id */
  #take(id) {
    const entry = this.#orders.get(id);
    if (entry === undefined) return;
    this.#orders.delete(id);
    this.#high = (this.#high - entry.high) >>> 0;
    this.#low = (this.#low - entry.low) >>> 0;
    const sum = this.#byStatus.get(entry.status);
    if (sum) this.#byStatus.set(entry.status, { count: sum.count - 1, amount: sum.amount - entry.amount });
  }

  get count() {
    return this.#orders.size;
  }

  /** Sixteen hexadecimal digits: equal for equal orders, in whatever way they came to be. */
  get fingerprint() {
    return hex(this.#high) + hex(this.#low);
  }

  /** Known statuses first, in their order in an order's life. */
  get byStatus() {
    const others = [...this.#byStatus.keys()].filter((status) => !STATUSES.includes(status)).sort();
    return [...STATUSES, ...others].map((status) => {
      const { count, amount } = this.#byStatus.get(status) ?? { count: 0, amount: 0n };
      return { status, count, amount: Number(amount) / 10 ** SCALE };
    });
  }
}

/**
 * The last `count` orders by the time they were placed, newest first.
 *
 * @template {Order} O
 * @param {readonly O[]} orders
 * @param {number} count
 * @returns {O[]}
 */
export function newest(orders, count) {
  /** @type {O[]} */
  const kept = [];
  // From the end, where the newest ids are: nearly all others then fail the first comparison.
  for (let at = orders.length - 1; at >= 0; at -= 1) {
    const order = /** @type {O} */ (orders[at]);
    const last = kept[kept.length - 1];
    if (kept.length === count && last && !later(order, last)) continue;
    let place = kept.length;
    while (place > 0 && later(order, /** @type {O} */ (kept[place - 1]))) place -= 1;
    kept.splice(place, 0, order);
    if (kept.length > count) kept.pop();
  }
  return kept;
}

/** Timestamps in UTC of one length sort as texts; fractions of different lengths too. @param {Order} a @param {Order} b */
function later(a, b) {
  return a.placed_at > b.placed_at || (a.placed_at === b.placed_at && a.id > b.id);
}

/** How much happened in each of the last seconds. */
export class Rate {
  /** @type {Map<number, { rows: number, steps: number }>} by second */
  #seconds = new Map();

  /** @param {number} seconds how far back it remembers */
  constructor(seconds) {
    this.seconds = seconds;
  }

  /** @param {number} nowMs @param {number} rows */
  add(nowMs, rows) {
    const second = Math.floor(nowMs / 1000);
    const entry = this.#seconds.get(second) ?? { rows: 0, steps: 0 };
    entry.rows += rows;
    entry.steps += 1;
    this.#seconds.set(second, entry);
    for (const old of this.#seconds.keys()) if (old < second - this.seconds) this.#seconds.delete(old);
  }

  /** Oldest first; the last is the second that is still running. @param {number} nowMs */
  last(nowMs) {
    const now = Math.floor(nowMs / 1000);
    return Array.from({ length: this.seconds }, (_, at) => {
      const entry = this.#seconds.get(now - this.seconds + 1 + at);
      return { rows: entry?.rows ?? 0, steps: entry?.steps ?? 0 };
    });
  }
}

/** The middle and the slow end of the last measurements. */
export class Latency {
  /** @type {number[]} */
  #samples = [];

  /** @param {number} size */
  constructor(size) {
    this.size = size;
  }

  /** @param {number} ms */
  add(ms) {
    this.#samples.push(ms);
    if (this.#samples.length > this.size) this.#samples.shift();
  }

  get count() {
    return this.#samples.length;
  }

  /** @param {number} share 0.5 for the median */
  quantile(share) {
    const sorted = [...this.#samples].sort((a, b) => a - b);
    return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? null;
  }
}

/** Fingerprints of this tab and others, compared where they stood at the same version. */
export class Agreement {
  compared = 0;
  different = 0;

  /** By moment, and so below. @type {Map<string, string>} */
  #mine = new Map();

  /** @type {Map<string, { seenMs: number, waiting: Map<string, string> }>} */
  #tabs = new Map();

  /** @param {string} moment epoch and version @param {string} fingerprint */
  mine(moment, fingerprint) {
    if (this.#mine.get(moment) === fingerprint) return;
    remember(this.#mine, moment, fingerprint);
    for (const tab of this.#tabs.values()) {
      const theirs = tab.waiting.get(moment);
      if (theirs === undefined) continue;
      tab.waiting.delete(moment);
      this.#compare(fingerprint, theirs);
    }
  }

  /** @param {string} name @param {number} nowMs @param {string} moment @param {string} fingerprint */
  theirs(name, nowMs, moment, fingerprint) {
    const tab = this.#tabs.get(name) ?? { seenMs: 0, waiting: new Map() };
    this.#tabs.set(name, tab);
    tab.seenMs = nowMs;
    const mine = this.#mine.get(moment);
    if (mine === undefined) remember(tab.waiting, moment, fingerprint);
    else this.#compare(mine, fingerprint);
  }

  /** Other tabs heard of in the last seconds. @param {number} nowMs */
  tabs(nowMs) {
    for (const [name, tab] of this.#tabs) if (nowMs - tab.seenMs > 8_000) this.#tabs.delete(name);
    return this.#tabs.size;
  }

  /** @param {string} mine @param {string} theirs */
  #compare(mine, theirs) {
    this.compared += 1;
    if (mine !== theirs) this.different += 1;
  }
}

/** Keeps the last few hundred. @param {Map<string, string>} map @param {string} moment @param {string} fingerprint */
function remember(map, moment, fingerprint) {
  map.set(moment, fingerprint);
  if (map.size > 400) map.delete(/** @type {string} */ (map.keys().next().value));
}

/** A numeric's text as whole ten-thousandths. @param {string} text */
export function tenThousandths(text) {
  const match = /^(-?)(\d+)(?:\.(\d+))?$/.exec(String(text));
  if (match === null) return 0n;
  const [, sign, whole = "0", fraction = ""] = match;
  const amount = BigInt(whole + fraction.slice(0, SCALE).padEnd(SCALE, "0"));
  return sign === "-" ? -amount : amount;
}

/** Two 32-bit hashes of a row's values (cyrb53's mixing). Order of columns as they came. @param {object} row */
function fingerprint(row) {
  const text = JSON.stringify(Object.entries(row).sort(([a], [b]) => (a < b ? -1 : 1)));
  let high = 0xdeadbeef;
  let low = 0x41c6ce57;
  for (let at = 0; at < text.length; at += 1) {
    const unit = text.charCodeAt(at);
    high = Math.imul(high ^ unit, 2_654_435_761);
    low = Math.imul(low ^ unit, 1_597_334_677);
  }
  high = Math.imul(high ^ (high >>> 16), 2_246_822_507) ^ Math.imul(low ^ (low >>> 13), 3_266_489_909);
  low = Math.imul(low ^ (low >>> 16), 2_246_822_507) ^ Math.imul(high ^ (high >>> 13), 3_266_489_909);
  return /** @type {const} */ ([high >>> 0, low >>> 0]);
}

/** @param {number} word */
function hex(word) {
  return word.toString(16).padStart(8, "0");
}
