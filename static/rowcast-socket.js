// One websocket after another: connecting, tokens, knowing a dead connection, and waiting before the next.
//
// It says when a connection is open, hands over every frame, and says when it is down. Which frames mean what is not
// its affair, apart from those about the connection itself (`hello`, `authenticated`, `expiring`).

/**
 * @typedef {import("./rowcast.js").Options} Options
 * @typedef {{ op: string, [field: string]: any }} Frame
 * @typedef {{
 *   open: () => void,
 *   frame: (frame: Frame) => void,
 *   down: (error: RowcastError, final: boolean) => void,
 *   trouble: (error: RowcastError) => void,
 * }} Events
 */

/** The first wait is up to this long; every failure doubles it. */
const BACKOFF_MS = 500;
const BACKOFF_MS_MAX = 30_000;

/** A connection that lasted this long was a good one: the next wait is short again. */
const STABLE_MS = 10_000;

/** Until `hello` says what the server's is. */
const HEARTBEAT_MS = 5_000;

/** How long an open connection has to answer a ping after the machine may have slept. */
const WAKE_MS = 3_000;

/** Before asking for a token again that could not be had, or was refused, in time for a refresh. */
const TOKEN_RETRY_MS = 10_000;

/** How long a token function may take: one that never answers must not keep the page offline for ever. */
const TOKEN_MS_MAX = 30_000;

/** Close codes from here to 4999 are final, also those not known here. */
const FINAL = 4500;
const TOKEN_EXPIRED = 4401;

/** A failure, by the server's word or by ours. */
export class RowcastError extends Error {
  /** @param {string} code @param {string} message @param {{ retry?: boolean, at?: number }} [more] */
  constructor(code, message, more = {}) {
    super(message);
    this.name = "RowcastError";
    this.code = code;
    this.retry = more.retry ?? false;
    this.at = more.at;
  }
}

export class Socket {
  /** The websocket in use, from before it is open until it is down. @type {WebSocket | null} */
  #socket = null;

  /** False before the first `connect` and from a final end on. */
  #running = false;

  /** Waits since the last good connection. */
  #failures = 0;

  /** The timer until the next connection, while waiting. @type {ReturnType<typeof setTimeout> | undefined} */
  #retry;

  /** The server asked not to be called before. In ms, our clock. */
  #notBefore = 0;

  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #watch;
  #deadAt = 0;
  #silenceMs = 3 * HEARTBEAT_MS;
  #openedAt = 0;

  /** The last token that the server took, and until when it holds, our clock. @type {{ text: string, until: number } | null} */
  #token = null;

  /** What this connection has said, until the server has answered. @type {string | null} */
  #offered = null;

  /** Whether this connection was authenticated, by whichever token. */
  #known = false;

  /** What the last token the server called expired was: only another one is fresh. */
  #expired = "";

  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #refresh;

  /** Counts the connections begun, so that a token that comes late starts nothing. */
  #turn = 0;

  /** @param {string} url @param {Options} options @param {Events} events */
  constructor(url, options, events) {
    this.url = url;
    this.options = options;
    this.events = events;
  }

  start() {
    this.#running = true;
    this.#connect();
  }

  /** Is there a connection that takes messages? */
  get isOpen() {
    return this.#socket !== null && this.#socket.readyState === 1;
  }

  /** @param {object} message */
  send(message) {
    if (this.isOpen) this.#socket?.send(JSON.stringify(message));
  }

  /** Ends for good. */
  stop() {
    this.#running = false;
    this.#drop(1000);
  }

  /** Gives up the connection, because what came over it makes no sense. @param {string} why */
  abandon(why) {
    this.#drop(4000);
    this.#again(new RowcastError("bad_frame", why, { retry: true }), 0);
  }

  /** The network may be back, or the machine awake: look now instead of later. */
  wake() {
    if (!this.#running) return;
    if (this.isOpen) {
      this.send({ op: "ping" });
      this.#deadAt = Math.min(this.#deadAt, Date.now() + WAKE_MS);
      this.#watchOn();
    } else if (this.#retry !== undefined && Date.now() >= this.#notBefore) {
      clearTimeout(this.#retry);
      this.#retry = undefined;
      this.#connect();
    }
  }

  #connect() {
    const turn = ++this.#turn;
    const { token } = this.options;
    if (typeof token !== "function") return this.#open(token);
    if (this.#token && this.#token.until > Date.now()) return this.#open(this.#token.text);
    askFor(token, this.#expired !== "" && this.#token === null ? "expired" : "connect").then(
      (text) => {
        if (!this.#running || turn !== this.#turn) return;
        if (text === this.#expired) {
          this.#again(new RowcastError("token_expired", "the token function gave an expired token", { retry: true }), 0);
          return;
        }
        this.#open(text);
      },
      (cause) => {
        if (!this.#running || turn !== this.#turn) return;
        this.#again(new RowcastError("no_token", `the token function failed: ${cause}`, { retry: true }), 0);
      },
    );
  }

  /** @param {string | undefined} token */
  #open(token) {
    const Constructor = this.options.WebSocket ?? WebSocket;
    const socket = new Constructor(this.url, ["rowcast.v1"]);
    this.#socket = socket;
    this.#openedAt = 0;
    this.#offered = null;
    this.#known = false;
    this.#silenceMs = 3 * HEARTBEAT_MS;
    this.#heard();
    this.#watchOn();
    const mine = () => socket === this.#socket;
    socket.onopen = () => {
      if (!mine()) return;
      this.#openedAt = Date.now();
      if (token !== undefined) this.#authenticate(token);
      this.events.open();
    };
    socket.onmessage = (event) => {
      if (!mine()) return;
      this.#heard();
      this.#receive(event.data);
    };
    socket.onclose = (event) => {
      if (mine()) this.#closed(event.code, event.reason);
    };
    // What went wrong is never told to a page; `close` follows.
    socket.onerror = () => {};
  }

  /** @param {unknown} data */
  #receive(data) {
    let frame;
    try {
      frame = JSON.parse(String(data));
    } catch {
      return this.abandon("a frame that is not JSON");
    }
    switch (frame.op) {
      case "hello":
        if (frame.heartbeat_ms > 0) this.#silenceMs = 3 * frame.heartbeat_ms;
        this.#heard();
        this.#watchOn();
        break;
      case "authenticated":
        if (this.#offered !== null) {
          const until = frame.expires_in_ms >= 0 ? Date.now() + frame.expires_in_ms : Infinity;
          this.#token = { text: this.#offered, until };
        }
        this.#offered = null;
        this.#known = true;
        break;
      case "expiring":
        this.#refreshToken();
        break;
      case "error":
        // Of a first token: the close follows, and says whether another may do. Of a refresh: the old one holds on.
        if (frame.code === "bad_token" && (frame.id ?? null) === null && this.#known) {
          this.#offered = null;
          this.#refreshLater();
        }
        break;
      default:
    }
    this.events.frame(frame);
  }

  /** @param {string} token */
  #authenticate(token) {
    this.#offered = token;
    this.send({ op: "auth", token });
  }

  #refreshLater() {
    clearTimeout(this.#refresh);
    this.#refresh = setTimeout(() => this.#refreshToken(), TOKEN_RETRY_MS);
  }

  /** Asks for a new token while the old one still holds. */
  #refreshToken() {
    const { token } = this.options;
    if (typeof token !== "function") return;
    const turn = this.#turn;
    askFor(token, "expiring").then(
      (text) => {
        if (turn !== this.#turn || !this.isOpen) return;
        this.#authenticate(text);
      },
      (cause) => {
        if (turn !== this.#turn || !this.isOpen) return;
        this.events.trouble(new RowcastError("no_token", `the token function failed: ${cause}`, { retry: true }));
        this.#refreshLater();
      },
    );
  }

  /** @param {number} code @param {string} text */
  #closed(code, text) {
    const reason = reasonOf(text);
    const name = typeof reason.code === "string" ? reason.code : `closed_${code}`;
    const retryAfterMs = reason.retry_after_ms > 0 ? Number(reason.retry_after_ms) : 0;
    this.#drop(null);
    const canRefresh = typeof this.options.token === "function";
    if ((code >= FINAL && code <= 4999) || (code === TOKEN_EXPIRED && !canRefresh)) {
      this.#running = false;
      this.events.down(new RowcastError(name, `the server ended the connection (${code} ${name})`), true);
      return;
    }
    if (code === TOKEN_EXPIRED) {
      // A refresh that is still under way is not what has expired.
      this.#expired = (this.#known ? this.#token?.text : this.#offered) ?? this.#expired;
      this.#token = null;
    }
    this.#again(new RowcastError(name, `the connection is down (${code} ${name})`, { retry: true }), retryAfterMs);
  }

  /**
   * Waits, with full jitter: anything between nothing and a limit that doubles, so that the clients of a restarted
   * server do not come back in one wave.
   *
   * @param {RowcastError} error @param {number} retryAfterMs
   */
  #again(error, retryAfterMs) {
    const limitMs = Math.min(BACKOFF_MS_MAX, BACKOFF_MS * 2 ** this.#failures);
    this.#failures += 1;
    this.#notBefore = Date.now() + retryAfterMs;
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => {
      this.#retry = undefined;
      this.#connect();
    }, retryAfterMs + Math.random() * limitMs);
    this.events.down(error, false);
  }

  /** Forgets the websocket; closes it where a code is given. @param {number | null} code */
  #drop(code) {
    const socket = this.#socket;
    this.#socket = null;
    this.#turn += 1;
    clearTimeout(this.#watch);
    clearTimeout(this.#retry);
    clearTimeout(this.#refresh);
    this.#watch = undefined;
    this.#retry = undefined;
    if (this.#openedAt > 0 && Date.now() - this.#openedAt >= STABLE_MS) this.#failures = 0;
    this.#openedAt = 0;
    if (socket && code !== null) socket.close(code);
  }

  #heard() {
    this.#deadAt = Date.now() + this.#silenceMs;
  }

  /** One timer that is set again when it finds that something was heard: not one per frame. */
  #watchOn() {
    clearTimeout(this.#watch);
    this.#watch = setTimeout(
      () => {
        if (Date.now() < this.#deadAt) return this.#watchOn();
        this.#drop(4000);
        this.#again(new RowcastError("silence", "nothing was heard from the server", { retry: true }), 0);
      },
      Math.max(0, this.#deadAt - Date.now()),
    );
  }
}

/**
 * A promise that settles whatever the function does: return, throw, give something that is not a text, or nothing at all.
 *
 * @param {(why: "connect" | "expiring" | "expired") => Promise<string> | string} token
 * @param {"connect" | "expiring" | "expired"} why
 * @returns {Promise<string>}
 */
function askFor(token, why) {
  return new Promise((resolve, reject) => {
    const late = setTimeout(() => reject(new Error(`nothing in ${TOKEN_MS_MAX / 1_000} s`)), TOKEN_MS_MAX);
    // Within a function of its own, so that what it throws at once is a rejection too.
    (async () => token(why))().then(
      (text) => {
        clearTimeout(late);
        if (typeof text === "string" && text !== "") resolve(text);
        else reject(new TypeError("it gave no text"));
      },
      (cause) => {
        clearTimeout(late);
        reject(cause);
      },
    );
  });
}

/** @param {string} text @returns {Record<string, any>} */
function reasonOf(text) {
  try {
    return Object(JSON.parse(text));
  } catch {
    return {};
  }
}
