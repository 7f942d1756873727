// The browser's side of `rowcast.v1`: tables and views of Postgres, live, in a page.
//
//     import { connect } from "/rowcast.js";
//     const orders = connect("/v1/ws").subscribe("orders");
//     orders.onChange(() => draw(orders.rows));
//
// The connection brings itself back and goes on where it was. What the server declares to belong together takes effect
// together: frames between `step` and `live` are kept and applied at once, then every listener runs, once. Types and
// promises are in rowcast.d.ts; rows in rowcast-rows.js; sockets in rowcast-socket.js.

import { Channel, Gap } from "./rowcast-channel.js";
import { NO_CHANGE } from "./rowcast-rows.js";
import { RowcastError, Socket } from "./rowcast-socket.js";
import { Handle, Shared, guarded } from "./rowcast-subscription.js";

export { RowcastError } from "./rowcast-socket.js";

/**
 * @typedef {import("./rowcast-socket.js").Frame} Frame
 * @typedef {import("./rowcast.js").Connection} PublicConnection
 * @typedef {import("./rowcast.js").State} State
 * @typedef {import("./rowcast.js").Step} Step
 */

/** How long a subscription outlives its last holder: a page that redraws closes and opens within this. */
const RELEASE_MS = 1_000;

/** Between two subscriptions of a channel that has gaps, so that a fault never becomes a storm. */
const GAP_MS = 1_000;

/** What to wait where an error may pass but does not say when. */
const RETRY_MS = 1_000;

/** Frames that are kept until the step they belong to is complete. */
const IN_STEP = new Set(["subscribed", "unsubscribed", "snapshot", "delta", "reset"]);

/** @type {typeof import("./rowcast.js").connect} */
export function connect(url = "/v1/ws", options = {}) {
  return new Connection(address(url), options);
}

/** @implements {PublicConnection} */
class Connection {
  /** @type {State} */
  state = "offline";

  /** @type {RowcastError | null} */
  error = null;

  /** The newest version that took effect, of any channel. @type {import("./rowcast.js").Moment | null} */
  position = null;

  /** By the text they were asked by. @type {Map<string, Shared>} */
  #shared = new Map();

  /** Those the server may still speak of. @type {Map<number, Shared>} */
  #byId = new Map();

  /** This connection's channels by `ch`. @type {Map<number, Channel>} */
  #channels = new Map();

  /** Never used twice, so that no answer is taken for another's. */
  #nextId = 1;

  /** An unfinished step and its frames. @type {{ version: number, frames: Frame[] } | null} */
  #step = null;

  /** Whose listeners have to run. @type {Set<Shared>} */
  #touched = new Set();
  #stateTouched = false;
  #stepTouched = false;

  /** Connected, and nothing has told a version yet. */
  #unplaced = true;

  /** When a channel last had a gap. @type {Map<Shared, number>} */
  #gapAt = new Map();

  /** @type {Set<(state: State) => void>} */
  #stateListeners = new Set();

  /** @type {Set<(step: Step) => void>} */
  #stepListeners = new Set();

  #closed = false;
  #socket;
  #int8;
  #unlisten;

  /** @param {string} url @param {import("./rowcast.js").Options} options */
  constructor(url, options) {
    this.#int8 = options.int8 ?? "number";
    this.#socket = new Socket(url, options, {
      open: () => this.#open(),
      frame: (frame) => this.#frame(frame),
      down: (error, final) => this.#down(error, final),
      trouble: (error) => this.#trouble(error),
    });
    this.#unlisten = onWake(() => this.#socket.wake());
    this.#socket.start();
  }

  /** @type {import("./rowcast.js").Connection["subscribe"]} */
  subscribe(text) {
    let shared = this.#shared.get(text);
    if (shared === undefined) {
      shared = new Shared(text);
      if (this.#closed) {
        shared.ended = true;
      } else {
        this.#shared.set(text, shared);
        this.#subscribe(shared);
      }
    }
    clearTimeout(shared.releaseTimer);
    shared.releaseTimer = undefined;
    const handle = new Handle(shared, (of) => this.#stateOf(of), (of) => this.#release(/** @type {Shared} */ (shared), of));
    shared.handles.add(handle);
    return /** @type {any} */ (handle);
  }

  onState = (/** @type {(state: State) => void} */ listener) => added(this.#stateListeners, listener);

  onStep = (/** @type {(step: Step) => void} */ listener) => added(this.#stepListeners, listener);

  close() {
    if (this.#closed) return;
    this.#closed = true;
    this.#unlisten();
    this.#socket.stop();
    for (const shared of [...this.#shared.values()]) this.#end(shared);
    this.#forgetConnection();
    this.#setState("offline");
    this.#settle();
  }

  /** @param {Shared} shared @returns {import("./rowcast.js").SubscriptionState} */
  #stateOf(shared) {
    if (shared.ended) return "ended";
    if (this.state === "offline") return "offline";
    const { channel } = shared;
    const fed = channel !== null && this.#channels.get(channel.number) === channel;
    return fed && channel.complete && shared.shown === channel.rows ? this.state : "loading";
  }

  // ── subscriptions ──

  /** Asks for a channel, from where we stand. @param {Shared} shared */
  #subscribe(shared) {
    clearTimeout(shared.retryTimer);
    shared.retryTimer = undefined;
    if (!this.#socket.isOpen) return;
    shared.id = this.#nextId++;
    this.#byId.set(shared.id, shared);
    const resume = shared.channel?.position ?? undefined;
    this.#socket.send({ op: "subscribe", id: shared.id, channel: shared.text, resume });
  }

  /** @param {Shared} shared @param {number} delayMs */
  #subscribeLater(shared, delayMs) {
    clearTimeout(shared.retryTimer);
    shared.retryTimer = setTimeout(() => this.#subscribe(shared), delayMs);
  }

  /** @param {Shared} shared @param {Handle} handle */
  #release(shared, handle) {
    shared.handles.delete(handle);
    if (shared.handles.size > 0 || shared.ended) return;
    shared.releaseTimer = setTimeout(() => {
      // The id stays known until `unsubscribed`, because until then it may feed others that share its channel.
      if (shared.id !== 0) this.#socket.send({ op: "unsubscribe", id: shared.id });
      this.#end(shared);
    }, RELEASE_MS);
  }

  /** Nobody wants it any more, or the server gives it no more. @param {Shared} shared */
  #end(shared) {
    shared.ended = true;
    clearTimeout(shared.releaseTimer);
    clearTimeout(shared.retryTimer);
    if (this.#shared.get(shared.text) === shared) this.#shared.delete(shared.text);
    this.#gapAt.delete(shared);
    this.#touched.add(shared);
  }

  /** The server does not speak of this id any more. @param {number} id */
  #forgetId(id) {
    const shared = this.#byId.get(id);
    this.#byId.delete(id);
    if (shared === undefined) return;
    if (shared.id === id) shared.id = 0;
    for (const [number, channel] of this.#channels) {
      if (this.#usersOf(channel).length === 0) this.#channels.delete(number);
    }
  }

  /** @param {Channel} channel */
  #usersOf(channel) {
    return [...this.#byId.values()].filter((shared) => shared.channel === channel);
  }

  // ── the connection ──

  #open() {
    this.#forgetConnection();
    for (const shared of this.#shared.values()) this.#subscribe(shared);
  }

  #forgetConnection() {
    for (const shared of this.#byId.values()) shared.id = 0;
    this.#byId.clear();
    this.#channels.clear();
    this.#step = null;
    this.#unplaced = true;
  }

  /** @param {RowcastError} error @param {boolean} final */
  #down(error, final) {
    this.#forgetConnection();
    this.#trouble(error, false);
    if (this.state !== "offline") this.#setState("offline");
    if (final) {
      for (const shared of [...this.#shared.values()]) {
        shared.error = error;
        this.#end(shared);
      }
    }
    this.#settle();
  }

  /** @param {RowcastError} error @param {boolean} [settles] */
  #trouble(error, settles = true) {
    this.error = error;
    this.#stateTouched = true;
    if (settles) this.#settle();
  }

  /** @param {State} state */
  #setState(state) {
    if (this.state === state) return;
    this.state = state;
    this.#stateTouched = true;
    for (const shared of this.#shared.values()) this.#touched.add(shared);
  }

  // ── frames ──

  /** @param {Frame} frame */
  #frame(frame) {
    try {
      if (this.#step && (IN_STEP.has(frame.op) || (frame.op === "error" && frame.id !== undefined))) {
        this.#step.frames.push(frame);
      } else {
        this.#take(frame);
      }
    } catch (error) {
      // A frame that cannot be understood leaves rows of which nothing is known: everything anew.
      console.error("rowcast: a frame that makes no sense", error);
      for (const shared of this.#shared.values()) shared.channel = null;
      this.#socket.abandon(String(error));
    }
    this.#settle();
  }

  /** @param {Frame} frame */
  #take(frame) {
    switch (frame.op) {
      case "hello":
        this.error = null;
        this.#setState("late");
        break;
      case "subscribed":
        this.#subscribed(/** @type {any} */ (frame));
        break;
      case "unsubscribed":
        this.#forgetId(frame.id);
        break;
      case "snapshot":
      case "delta":
      case "reset":
        this.#feed(frame);
        break;
      case "step":
        // A step inside a step: one step, complete at the higher version.
        this.#step = { version: Math.max(frame.version, this.#step?.version ?? 0), frames: this.#step?.frames ?? [] };
        break;
      case "live":
        this.#live(frame);
        break;
      case "authenticated":
        // A token that could not be had, or was refused, is forgiven.
        if (this.error !== null) {
          this.error = null;
          this.#stateTouched = true;
        }
        break;
      case "error":
        this.#error(frame);
        break;
      default:
        // `expiring`, `pong`, and whatever later servers say.
    }
  }

  /** @param {import("./rowcast-channel.js").Subscribed} frame */
  #subscribed(frame) {
    const shared = this.#byId.get(frame.id);
    if (shared === undefined) return;
    const before = this.#channels.get(frame.ch);
    if (frame.shared) {
      if (before === undefined) return this.#again([shared], false);
      shared.channel = before;
      if (before.complete) shared.show(before, NO_CHANGE);
    } else {
      let channel;
      try {
        channel = new Channel(frame, this.#int8, shared.shown, shared.channel);
      } catch (error) {
        if (error instanceof Gap) return this.#again([shared], false);
        throw error;
      }
      this.#channels.set(frame.ch, channel);
      for (const user of before ? this.#usersOf(before) : []) {
        user.channel = channel;
        this.#touched.add(user);
      }
      const left = shared.channel;
      shared.channel = channel;
      // Other texts of this channel go on with the same rows: what the resume brings is theirs, before they hear so.
      for (const user of frame.resumed && left ? this.#usersOf(left) : []) {
        user.channel = channel;
        this.#touched.add(user);
      }
      if (left && left !== before && this.#channels.get(left.number) === left && this.#usersOf(left).length === 0) {
        this.#channels.delete(left.number);
      }
    }
    shared.error = null;
    this.#touched.add(shared);
  }

  /** A frame of a channel; unknown channels are ignored: their subscription is over. @param {Frame} frame */
  #feed(frame) {
    const channel = this.#channels.get(frame["ch"]);
    if (channel === undefined) return;
    const users = this.#usersOf(channel);
    if (frame.op === "reset") {
      channel.reset();
      for (const shared of users) this.#touched.add(shared);
      return;
    }
    let change;
    try {
      change = frame.op === "snapshot" ? channel.snapshot(/** @type {any} */ (frame)) : channel.delta(/** @type {any} */ (frame));
    } catch (error) {
      if (!(error instanceof Gap)) throw error;
      return this.#again(users, error.resumable);
    }
    if (change === null) return;
    for (const shared of users) {
      shared.show(channel, change);
      this.#touched.add(shared);
    }
    this.#moved(channel.epoch, channel.version, frame["as_of"]);
  }

  /** @param {Frame} frame */
  #live(frame) {
    if (this.#step && frame["version"] >= this.#step.version) {
      const { frames } = this.#step;
      this.#step = null;
      for (const kept of frames) this.#take(kept);
    }
    for (const channel of this.#channels.values()) channel.live(frame["epoch"], frame["version"]);
    this.#setState(frame["state"] === "live" ? "live" : "late");
    this.#moved(frame["epoch"], frame["version"], frame["as_of"]);
  }

  /** @param {Frame} frame */
  #error(frame) {
    const error = new RowcastError(frame["code"], frame["message"], { retry: frame["retry"] === true, at: frame["at"] });
    if (frame["id"] === undefined || frame["id"] === null) return this.#trouble(error, false);
    const shared = this.#byId.get(frame["id"]);
    if (shared === undefined) return;
    this.#forgetId(frame["id"]);
    if (shared.ended) return;
    this.#touched.add(shared);
    if (error.retry || error.code === "duplicate_id") {
      shared.error = error;
      this.#subscribeLater(shared, frame["retry_after_ms"] ?? RETRY_MS);
    } else {
      shared.error = error;
      shared.clear();
      this.#end(shared);
    }
  }

  /**
   * Something was missed. All subscriptions of the channel go before one comes again, or the server would share a
   * channel with the others instead of beginning it. Frames of it until then are of an unknown channel.
   *
   * @param {Shared[]} users @param {boolean} resumable
   */
  #again(users, resumable) {
    const now = Date.now();
    for (const shared of users) {
      if (shared.id !== 0) this.#socket.send({ op: "unsubscribe", id: shared.id });
      this.#forgetId(shared.id);
      if (!resumable) shared.channel = null;
      this.#touched.add(shared);
    }
    for (const shared of users) {
      if (shared.ended) continue;
      const sinceMs = now - (this.#gapAt.get(shared) ?? -Infinity);
      this.#gapAt.set(shared, now);
      if (sinceMs >= GAP_MS) this.#subscribe(shared);
      else this.#subscribeLater(shared, GAP_MS - sinceMs);
    }
  }

  /** @param {string} epoch @param {number} version @param {number | undefined} asOf ms, database clock */
  #moved(epoch, version, asOf) {
    const { position } = this;
    this.#stepTouched = true;
    // Behind one address there may be another database, after a reconnect or a restored backup, and its versions are its
    // own.
    if (position && position.epoch === epoch && position.version > version && !this.#unplaced) return;
    this.#unplaced = false;
    const known = position?.version === version ? position.asOf : null;
    this.position = { epoch, version, asOf: asOf ?? known };
  }

  /** Everything that belongs together has taken effect: now everybody is told, once. */
  #settle() {
    const touched = [...this.#touched];
    this.#touched.clear();
    let changed = 0;
    for (const shared of touched) changed += shared.tell();
    if (this.#stateTouched) {
      this.#stateTouched = false;
      for (const listener of [...this.#stateListeners]) guarded(() => listener(this.state));
    }
    if (this.#stepTouched && this.position) {
      this.#stepTouched = false;
      const step = { ...this.position, changed };
      for (const listener of [...this.#stepListeners]) guarded(() => listener(step));
    }
  }
}

/** @template T @param {Set<(value: T) => void>} listeners @param {(value: T) => void} listener */
function added(listeners, listener) {
  const entry = (/** @type {T} */ value) => listener(value);
  listeners.add(entry);
  return () => {
    listeners.delete(entry);
  };
}

/** The websocket address, also from a path of this page or from an http address. @param {string} url */
function address(url) {
  const base = typeof location === "undefined" ? undefined : location.href;
  const full = new URL(url, base);
  if (full.protocol === "http:") full.protocol = "ws:";
  if (full.protocol === "https:") full.protocol = "wss:";
  full.hash = "";
  return full.href;
}

/** Calls when the network or the page may have come back. @param {() => void} wake */
function onWake(wake) {
  if (typeof window === "undefined" || typeof document === "undefined") return () => {};
  const visible = () => {
    if (document.visibilityState === "visible") wake();
  };
  window.addEventListener("online", wake);
  document.addEventListener("visibilitychange", visible);
  return () => {
    window.removeEventListener("online", wake);
    document.removeEventListener("visibilitychange", visible);
  };
}
