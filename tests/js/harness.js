// A server and a clock for tests of the client: both do only what the test says.

/** Timers and `Date.now` under the test's hand, and `Math.random` at its greatest: every wait is its limit. */
export class Clock {
  now = 1_000_000;
  #timers = new Map();
  #next = 1;

  constructor(test) {
    const kept = { setTimeout, clearTimeout, now: Date.now, random: Math.random };
    globalThis.setTimeout = (run, delayMs = 0) => {
      const id = this.#next++;
      this.#timers.set(id, { at: this.now + delayMs, run });
      return id;
    };
    globalThis.clearTimeout = (id) => this.#timers.delete(id);
    Date.now = () => this.now;
    Math.random = () => 1;
    test.after(() => {
      globalThis.setTimeout = kept.setTimeout;
      globalThis.clearTimeout = kept.clearTimeout;
      Date.now = kept.now;
      Math.random = kept.random;
    });
  }

  get waiting() {
    return this.#timers.size;
  }

  /** Lets time pass, and every timer that falls due run in order. */
  async pass(ms) {
    const end = this.now + ms;
    for (;;) {
      await settled();
      const due = [...this.#timers].filter(([, timer]) => timer.at <= end).sort((a, b) => a[1].at - b[1].at)[0];
      if (due === undefined) break;
      this.#timers.delete(due[0]);
      this.now = Math.max(this.now, due[1].at);
      due[1].run();
    }
    this.now = end;
    await settled();
  }
}

/** Lets promises that are ready run on. */
export async function settled() {
  for (let turn = 0; turn < 20; turn += 1) await null;
}

/** A fresh class of websockets that remembers what was opened and said. */
export function fakeWebSocket() {
  return class FakeWebSocket {
    static opened = [];
    readyState = 0;
    sent = [];

    constructor(url, protocols) {
      this.url = url;
      this.protocols = protocols;
      FakeWebSocket.opened.push(this);
    }

    static get last() {
      return FakeWebSocket.opened.at(-1);
    }

    send(text) {
      this.sent.push(JSON.parse(text));
    }

    close(code) {
      this.readyState = 3;
      this.closedWith = code;
    }

    // What the server does.

    accept(heartbeat_ms = 5000) {
      this.readyState = 1;
      this.onopen?.();
      this.say({ op: "hello", protocol: 1, heartbeat_ms });
    }

    say(...frames) {
      for (const frame of frames) this.onmessage?.({ data: typeof frame === "string" ? frame : JSON.stringify(frame) });
    }

    end(code, reason = "") {
      this.readyState = 3;
      this.onclose?.({ code, reason: typeof reason === "string" ? reason : JSON.stringify(reason) });
    }

    /** The messages of an op since the last look. */
    take(op) {
      const taken = this.sent.filter((message) => message.op === op);
      this.sent = this.sent.filter((message) => message.op !== op);
      return taken;
    }
  };
}

/** A `subscribed` frame for a table of (id int4, status text). */
export function subscribed(id, ch, more = {}) {
  return {
    op: "subscribed",
    id,
    ch,
    tag: `t${ch}`,
    epoch: "e1",
    version: 10,
    key: ["id"],
    resumed: false,
    order: [{ column: "id", dir: "asc", nulls: "last" }],
    columns: [
      { name: "id", type: "int4" },
      { name: "status", type: "text" },
    ],
    ...more,
  };
}

export function snapshot(ch, version, rows, more = {}) {
  return { op: "snapshot", ch, version, rows, ...more };
}

export function delta(ch, prev, version, rows, more = {}) {
  return { op: "delta", ch, prev, version, as_of: 5000 + version, rows, ...more };
}

export function live(version, more = {}) {
  return { op: "live", epoch: "e1", version, as_of: 5000 + version, state: "live", ...more };
}
