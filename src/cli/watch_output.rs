//! What `rowcast watch` writes: a table and lines for people, or a JSON object per line for pipes.
//!
//! Rows and changes go to standard output; how the connection is goes to standard error, dimmed. Colours are used only
//! on a terminal.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};
use std::time::Duration;

use serde_json::json;
use serde_json::value::RawValue;

use super::client::{Change, Client, Event, Form, Handle, Live, Row};
use super::table::{Heading, Table, cell};
use crate::order::{is_number, plain};

const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const RED: &str = "\x1b[31m";
const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

pub(super) struct Output {
    out: BufWriter<Stdout>,
    channel: String,
    json: bool,
    /// How many rows of a snapshot are shown; `None`: all.
    rows_max: Option<usize>,
    coloured: bool,
    coloured_notes: bool,
    table: Option<Table>,
    /// The state of the last `live` that was shown: only a change of it is worth a line.
    state: Option<String>,
}

impl Output {
    pub(super) fn new(channel: &str, json: bool, rows: usize) -> Self {
        let is_terminal = io::stdout().is_terminal();
        Self {
            out: BufWriter::new(io::stdout()),
            channel: channel.to_owned(),
            json,
            rows_max: is_terminal.then_some(rows),
            coloured: is_terminal,
            coloured_notes: io::stderr().is_terminal(),
            table: None,
            state: None,
        }
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// A remark to standard error.
    pub(super) fn note(&self, text: &str) {
        // Who does not read remarks does not miss them.
        let _ = match self.coloured_notes {
            true => writeln!(io::stderr(), "{DIM}{text}{PLAIN}"),
            false => writeln!(io::stderr(), "{text}"),
        };
    }

    /// The connection is gone, or could not be made.
    pub(super) fn offline(&mut self, why: &str, wait: Duration) -> io::Result<()> {
        self.state = None;
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        if self.json {
            writeln!(self.out, r#"{{"op":"offline","why":{},"retry_ms":{wait_ms}}}"#, json!(why))?;
        } else {
            self.note(&format!("offline: {}; trying again in {:.1} s", cell_long(why), wait.as_secs_f64()));
        }
        self.flush()
    }

    /// Something happened, and has taken effect in `client`.
    pub(super) fn event(&mut self, client: &Client, event: &Event) -> io::Result<()> {
        match event {
            Event::Snapshot { handle, version } if self.json => {
                let Some(form) = client.form(*handle) else { return Ok(()) };
                let rows: Vec<String> =
                    client.sorted(*handle).iter().map(|(_, row)| row.to_json(&form.columns)).collect();
                let key = json!(form.key);
                writeln!(
                    self.out,
                    r#"{{"op":"snapshot","channel":{},"version":{version},"key":{key},"rows":[{}]}}"#,
                    json!(self.channel),
                    rows.join(",")
                )
            }
            Event::Snapshot { handle, .. } => self.snapshot(client, *handle),
            Event::Changed { handle, version, as_of, changes } => {
                let Some(form) = client.form(*handle) else { return Ok(()) };
                for change in changes {
                    if self.json {
                        self.change_object(form, version.0, *as_of, change)?;
                    } else {
                        self.change(form, change)?;
                    }
                }
                Ok(())
            }
            Event::Live(live) => self.live(client, live),
            Event::Reset { why, .. } if self.json => writeln!(self.out, r#"{{"op":"reset","why":{}}}"#, json!(why)),
            Event::Reset { why, .. } => {
                self.note(&format!("reset ({}): a snapshot follows", cell_long(why)));
                Ok(())
            }
            Event::Subscribed { handle, resumed: true } => {
                let version = client.position(*handle).map(|position| position.version).unwrap_or_default();
                self.note(&format!("back: continuing after version {version}"));
                Ok(())
            }
            Event::Gap { .. } => {
                self.note("a gap in the changes: asking for what is missing");
                Ok(())
            }
            Event::Refused { error, .. } | Event::Error(error) => {
                self.note(&format!("{}: {}", cell(&error.code), cell_long(&error.message)));
                Ok(())
            }
            Event::Expiring { expires_in_ms } => {
                self.note(&format!("the token expires in {} s", expires_in_ms / 1_000));
                Ok(())
            }
            Event::Subscribed { .. } | Event::Unsubscribed { .. } | Event::Authenticated(_) => Ok(()),
        }
    }

    fn live(&mut self, client: &Client, live: &Live) -> io::Result<()> {
        if self.json {
            // Written out, so that every line begins with its op.
            return writeln!(
                self.out,
                r#"{{"op":"live","epoch":{},"version":{},"as_of":{},"state":{}}}"#,
                json!(live.epoch),
                live.version,
                live.as_of,
                json!(live.state)
            );
        }
        let is_complete = client.handles().into_iter().all(|handle| client.is_complete(handle));
        if is_complete && self.state.as_deref() != Some(live.state.as_str()) {
            match live.state.as_str() {
                "live" => self.note(&format!("live at version {}", live.version)),
                _ => self.note("late: the server is not sure to have the newest changes"),
            }
            self.state = Some(live.state.clone());
        }
        Ok(())
    }

    fn snapshot(&mut self, client: &Client, handle: Handle) -> io::Result<()> {
        let Some(form) = client.form(handle) else { return Ok(()) };
        let rows = client.sorted(handle);
        let shown = self.rows_max.unwrap_or(rows.len()).min(rows.len());
        let cells: Vec<Vec<String>> = rows[..shown].iter().map(|(_, row)| cells(form, row)).collect();
        let headings =
            form.columns.iter().map(|column| Heading { name: cell(&column.name), right: is_number(&column.type_name) });
        let table = Table::new(headings.collect(), &cells);
        let head = self.paint(BOLD, &table.head());
        writeln!(self.out, "  {head}")?;
        for row in &cells {
            writeln!(self.out, "  {}", table.line(row))?;
        }
        self.out.flush()?;
        self.table = Some(table);
        match rows.len() - shown {
            0 if rows.len() == 1 => self.note("1 row"),
            0 => self.note(&format!("{} rows", rows.len())),
            more => self.note(&format!("{} rows; {more} are not shown (--rows {})", rows.len(), rows.len())),
        }
        Ok(())
    }

    fn change(&mut self, form: &Form, change: &Change) -> io::Result<()> {
        let line = match change {
            Change::Upsert { before: None, row, .. } => {
                let cells = cells(form, row);
                let line = self.table.as_ref().map_or_else(|| cells.join("  "), |table| table.line(&cells));
                self.paint(GREEN, &format!("+ {line}"))
            }
            Change::Upsert { changed, .. } if changed.is_empty() => return Ok(()),
            Change::Upsert { before: Some(before), row, changed, .. } => {
                let sign = self.paint(YELLOW, &format!("~ {}", identification(form, row)));
                // In the order of the columns, which `changed` does not know.
                let columns = form.columns.iter().filter(|column| changed.iter().any(|name| **name == *column.name));
                let changes = columns.map(|column| {
                    let (old, new) = (shown(before, &column.name), shown(row, &column.name));
                    let name = self.paint(DIM, &cell(&column.name));
                    format!("  {name} {old} → {}", self.paint(BOLD, &new))
                });
                format!("{sign}{}", changes.collect::<String>())
            }
            Change::Gone { key, row, why } => {
                let what = row.as_ref().map_or_else(|| cell(key.as_str()), |row| identification(form, row));
                let why = why.map(|why| format!("  {}", json!(why).as_str().unwrap_or_default())).unwrap_or_default();
                self.paint(RED, &format!("- {what}{why}"))
            }
        };
        writeln!(self.out, "{line}")
    }

    fn change_object(&mut self, form: &Form, version: u64, as_of: Option<i64>, change: &Change) -> io::Result<()> {
        let as_of = json!(as_of);
        match change {
            Change::Upsert { key, row, changed, .. } => writeln!(
                self.out,
                r#"{{"op":"upsert","version":{version},"as_of":{as_of},"key":{},"row":{},"changed":{}}}"#,
                key.as_str(),
                row.to_json(&form.columns),
                json!(changed)
            ),
            Change::Gone { key, why, .. } => {
                let key: &RawValue = serde_json::from_str(key.as_str())?;
                writeln!(
                    self.out,
                    r#"{{"op":"gone","version":{version},"as_of":{as_of},"key":{key},"why":{}}}"#,
                    json!(why)
                )
            }
        }
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.coloured { format!("{colour}{text}{PLAIN}") } else { text.to_owned() }
    }
}

fn cells(form: &Form, row: &Row) -> Vec<String> {
    form.columns.iter().map(|column| shown(row, &column.name)).collect()
}

/// A value as people read it.
fn shown(row: &Row, column: &str) -> String {
    match row.large(column) {
        Some(bytes) => format!("({:.1} MB)", bytes as f64 / 1e6),
        None => row.value(column).map_or_else(|| "?".to_owned(), |value| cell(&plain(value))),
    }
}

/// `id 1042`: the key with the names of its columns.
fn identification(form: &Form, row: &Row) -> String {
    let parts: Vec<String> = form.key.iter().map(|name| format!("{} {}", cell(name), shown(row, name))).collect();
    parts.join(", ")
}

/// A message of somebody else, on one line, not cut as cells are.
fn cell_long(text: &str) -> String {
    let harmless = text.chars().take(400).map(|character| if character.is_control() { ' ' } else { character });
    harmless.collect()
}
