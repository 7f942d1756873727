// What a page holds of a channel, and the one subscription behind all pages that hold the same.
//
// A `Shared` is a wish for a channel: it survives connections, keeps showing its last rows while there is none, and is
// let go a second after its last holder closed. A `Handle` is what one caller of `subscribe` gets.

import { NO_CHANGE, NO_ROWS, together } from "./rowcast-rows.js";

/**
 * @typedef {import("./rowcast.js").Row} Row
 * @typedef {import("./rowcast.js").Change<Row>} Change
 * @typedef {import("./rowcast.js").Subscription} Subscription
 * @typedef {import("./rowcast-rows.js").Rows} Rows
 * @typedef {import("./rowcast-channel.js").Channel} Channel
 * @typedef {import("./rowcast-socket.js").RowcastError} RowcastError
 * @typedef {(change: Change) => void} Listener
 */

export class Shared {
  /** The number on the wire; 0 while it is not subscribed there. */
  id = 0;

  /** What feeds it, from `subscribed` on; kept over a lost connection for its position. @type {Channel | null} */
  channel = null;

  /** The rows shown: those of `channel` once they are complete, until then the last complete ones. @type {Rows | null} */
  shown = null;

  /** @type {RowcastError | null} */
  error = null;

  /** The server ended it, or nobody holds it any more. */
  ended = false;

  /** @type {Set<Handle>} */
  handles = new Set();

  /** @type {ReturnType<typeof setTimeout> | undefined} */
  releaseTimer;

  /** @type {ReturnType<typeof setTimeout> | undefined} */
  retryTimer;

  /** What took effect since the listeners last ran. @type {Change[]} */
  #changes = [];

  /** @param {string} text the channel as it was asked for */
  constructor(text) {
    this.text = text;
  }

  get rows() {
    return this.shown?.list ?? NO_ROWS;
  }

  /** @param {Change} change */
  note(change) {
    this.#changes.push(change);
  }

  /** Shows what its channel has now. @param {Channel} channel @param {Change} change what made it so */
  show(channel, change) {
    if (this.shown === channel.rows) return this.note(change);
    const before = this.shown;
    this.shown = channel.rows;
    // The channel compared with the rows of whoever opened it; this one may have shown others.
    const held = new Set(before?.list);
    const now = new Set(this.shown.list);
    this.note({
      rows: this.shown.list.filter((row) => !held.has(row)),
      gone: (before?.list ?? NO_ROWS).filter((row) => !now.has(row) && !this.shown?.get(keyOf(row, this.shown))),
    });
  }

  /** Shows nothing any more: the rows may not be ours to see. */
  clear() {
    this.note({ rows: NO_ROWS, gone: this.rows });
    this.shown = null;
    this.channel = null;
  }

  /** Tells everybody, once. @returns {number} how many rows changed */
  tell() {
    const change = this.#changes.length === 0 ? NO_CHANGE : together(this.#changes, this.shown);
    this.#changes = [];
    for (const handle of [...this.handles]) handle.tell(change);
    return change.rows.length + change.gone.length;
  }
}

/** @implements {Subscription} */
export class Handle {
  /** @type {Set<Listener>} */
  #listeners = new Set();

  /** Resolves who wait in an iteration. @type {Set<() => void>} */
  #waiting = new Set();

  #shared;
  #stateOf;
  #release;
  #closed = false;

  /**
   * @param {Shared} shared
   * @param {(shared: Shared) => import("./rowcast.js").SubscriptionState} stateOf
   * @param {(handle: Handle) => void} release
   */
  constructor(shared, stateOf, release) {
    this.#shared = shared;
    this.#stateOf = stateOf;
    this.#release = release;
  }

  get channel() {
    return this.#shared.text;
  }

  get rows() {
    return this.#shared.rows;
  }

  get form() {
    return this.#shared.shown?.form ?? null;
  }

  get state() {
    return this.#closed ? "ended" : this.#stateOf(this.#shared);
  }

  get error() {
    return this.#shared.error;
  }

  get position() {
    const { channel } = this.#shared;
    return channel?.complete ? { epoch: channel.epoch, version: channel.version } : null;
  }

  /** @param {unknown} key */
  get(key) {
    return this.#shared.shown?.get(key);
  }

  /** @param {unknown} key */
  large(key) {
    return this.#shared.shown?.large(key);
  }

  // A field, so that it can be passed on by itself: useSyncExternalStore(orders.onChange, () => orders.rows).
  onChange = (/** @type {Listener} */ listener) => {
    // Wrapped: the same function given twice is two listeners.
    const entry = (/** @type {Change} */ change) => listener(change);
    this.#listeners.add(entry);
    return () => {
      this.#listeners.delete(entry);
    };
  };

  close() {
    if (this.#closed) return;
    this.#closed = true;
    this.#release(this);
    this.#listeners.clear();
    this.#wake();
  }

  /** @param {Change} change */
  tell(change) {
    for (const listener of [...this.#listeners]) {
      if (this.#listeners.has(listener)) guarded(() => listener(change));
    }
    this.#wake();
  }

  #wake() {
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const wake of waiting) wake();
  }

  /**
   * The rows now and after every step that changed them. Who is slow misses steps, never the last: there is no queue.
   *
   * @returns {AsyncGenerator<readonly Row[], void, void>}
   */
  async *[Symbol.asyncIterator]() {
    /** @type {readonly Row[] | null} */
    let last = null;
    for (;;) {
      if (this.#closed) return;
      const { shown, ended, error } = this.#shared;
      if (ended) {
        if (error) throw error;
        return;
      }
      if (shown && shown.list !== last) {
        last = shown.list;
        yield last;
      } else {
        await /** @type {Promise<void>} */ (new Promise((resolve) => this.#waiting.add(resolve)));
      }
    }
  }
}

/** Runs a listener; what it throws is reported and disturbs nobody else. @param {() => void} run */
export function guarded(run) {
  try {
    run();
  } catch (error) {
    if (typeof reportError === "function") reportError(error);
    else console.error(error);
  }
}

/** @param {Row} row @param {Rows} rows */
function keyOf(row, rows) {
  return rows.form.key.map((name) => row[name]);
}
