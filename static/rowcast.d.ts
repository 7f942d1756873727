// The types and promises of rowcast.js. The wire behind it is `rowcast.v1`.

/**
 * Opens a connection. It brings itself back and goes on where it was, until `close()` or until the server says that
 * coming back is useless (close codes 4500 to 4999, and 4401 without a token function).
 *
 * @param url of the websocket; a path of this page and http(s) addresses will do. Default `/v1/ws`.
 */
export function connect(url?: string, options?: Options): Connection;

export interface Options {
  /**
   * A JWT, or a function that gives one: on connecting, while the old one is `expiring`, and when the server has
   * called it `expired` (then only another one than before is tried). It has 30 s to answer, and is asked again if it
   * does not, or fails. Absent: anonymous, or the cookie.
   */
  token?: string | ((why: "connect" | "expiring" | "expired") => Promise<string> | string);
  /**
   * What int8 values become. `"number"` (default): a number where that is exact, beyond ±(2^53 - 1) the text as it came.
   * `"string"`: always the text. `"bigint"`: always a bigint. numeric is always a text.
   */
  int8?: "number" | "string" | "bigint";
  /** For environments without a global WebSocket. */
  WebSocket?: new (url: string, protocols: string[]) => WebSocket;
}

/**
 * `live`: what is shown is the database as of `position.asOf`, at most a heartbeat ago. `late`: connected, but the
 * server's own pipeline is not known to work. `offline`: no connection; rows stay as they were.
 */
export type State = "live" | "late" | "offline";

/** `loading`: connected, and the rows are not there yet or are being replaced. `ended`: closed, or `error` says why. */
export type SubscriptionState = State | "loading" | "ended";

export interface Connection {
  readonly state: State;
  /** Why it is down, or what the server last found wrong with it. Null once connected. */
  readonly error: RowcastError | null;
  /** The newest version that took effect in any channel. */
  readonly position: Moment | null;
  /**
   * A channel, such as `orders` or `orders?status=eq.open&order=placed_at.desc`. Equal texts share one subscription; it is
   * let go a second after the last `close()`.
   */
  subscribe<R extends Row = Row>(channel: string): Subscription<R>;
  /** Runs when `state` or `error` changed. Returns what removes the listener. */
  onState(listener: (state: State) => void): () => void;
  /** Runs once after every step, after the listeners of all subscriptions, and with every heartbeat. */
  onStep(listener: (step: Step) => void): () => void;
  close(): void;
}

/** Versions ascend; `asOf` is the database's clock in ms since 1970, null until it is known. */
export interface Position {
  readonly epoch: string;
  readonly version: number;
}

export interface Moment extends Position {
  readonly asOf: number | null;
}

export interface Step extends Moment {
  /** How many rows came, changed or went, over all subscriptions. */
  readonly changed: number;
}

/**
 * A row by column name. Never altered: a change makes a new object, and a row that did not change keeps its object. Values
 * are as `to_json` writes them: timestamps, numeric, bytea are texts; NaN and infinities are texts.
 */
export type Row = { readonly [column: string]: any };

/** What a step did to one subscription: rows that came or changed, and rows that went (as they were). */
export interface Change<R extends Row = Row> {
  readonly rows: readonly R[];
  readonly gone: readonly R[];
}

export interface Column {
  readonly name: string;
  /** Postgres' name: `int4`, `text`, `int8[]`. */
  readonly type: string;
}

export interface OrderBy {
  readonly column: string;
  readonly dir: "asc" | "desc";
  readonly nulls: "first" | "last";
}

export interface Form {
  readonly key: readonly string[];
  readonly order: readonly OrderBy[];
  readonly columns: readonly Column[];
}

export interface Subscription<R extends Row = Row> extends AsyncIterable<readonly R[]> {
  /** As it was asked for. */
  readonly channel: string;
  /**
   * Sorted by the channel's order, as Postgres sorts (text by code point). A new array after every step that changed it,
   * the same one until then. Stays while offline; empty once an error has ended the subscription.
   */
  readonly rows: readonly R[];
  readonly state: SubscriptionState;
  /** With state `ended`: why. Otherwise a failure that is being retried. */
  readonly error: RowcastError | null;
  /** Null until the first snapshot. */
  readonly form: Form | null;
  /** The version at which `rows` is the channel. Null while it is not known. */
  readonly position: Position | null;
  /** By the key's value, or its values in key order; int8 as number, text or bigint. */
  get(key: unknown): R | undefined;
  /** Columns that are null in this row because the value was too large to send, with their sizes in bytes. */
  large(key: unknown): Readonly<Record<string, number>> | undefined;
  /**
   * Runs once per step that concerned the subscription: rows, `state` or `error` changed (then both lists may be empty).
   * All subscriptions of the connection are already at the step. Returns what removes the listener. May be passed on
   * by itself: `useSyncExternalStore(orders.onChange, () => orders.rows)`.
   */
  readonly onChange: (listener: (change: Change<R>) => void) => () => void;
  close(): void;
  /**
   * Yields `rows` at once if there are any yet, then after every step that changed them. A slow consumer skips steps and
   * gets the latest; nothing is queued. Ends with `close()`; throws the error that ended the subscription.
   */
  [Symbol.asyncIterator](): AsyncIterator<readonly R[], void, void>;
}

export class RowcastError extends Error {
  /** The server's word (`forbidden`, `bad_query`, `token_expired`, …), or ours: `silence`, `no_token`, `closed_1006`. */
  readonly code: string;
  /** Whether it is being retried. */
  readonly retry: boolean;
  /** With `bad_query`: the byte where reading the channel stopped. */
  readonly at?: number;
}
