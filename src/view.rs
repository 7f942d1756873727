//! A view: what a channel makes of a feed's rows.
//!
//! ```text
//!   feed's row ── policy? ── no ─▶ `permission`
//!                   │ yes
//!                 query? ── no ─▶ `filter`
//!                   │ yes
//!               projection ─▶ the row as the channel's clients see it ─▶ window? ── no ─▶ `window`
//! ```
//!
//! The same view stands behind a snapshot query, the roll-forward of a checkpoint and every step of the hub, so that the
//! three agree. It belongs to one schema of the feed, and knows the schema of the channel: the columns asked for, the key,
//! and the columns of the order, in the table's order; hidden columns are never among them. Because rows are projected
//! before they are compared, a change in a column that nobody asked for is no change.
//!
//! Which rows a window shows depends on all the others: that is `rows::window`. What Postgres' row security decides is not
//! known here either: entries tell it for each identity, and a view knows only whose eyes are its own ([`View::sight`]).

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::value::RawValue;

use crate::channel::ChannelSpec;
use crate::entry::Row;
use crate::entry::seen::Sight;
use crate::identity::ResolvedPolicy;
use crate::order::RowOrder;
use crate::protocol::Why;
use crate::publication::Schema;
use crate::query::{Filter, Predicate};

/// See the module.
#[derive(Debug)]
pub struct View {
    policy: Predicate,
    query: Predicate,
    /// The feed's columns that remain, ascending; `None`: all of them do.
    projection: Option<Box<[usize]>>,
    schema: Arc<Schema>,
    schema_id: Arc<str>,
    feed_schema: Arc<Schema>,
    feed_schema_id: Arc<str>,
    order: Arc<RowOrder>,
    limit: Option<usize>,
    pinned: Vec<(usize, Vec<Arc<str>>)>,
    shows_all: bool,
    sight: Sight,
}

/// What a view says of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It belongs to the channel, if its window reaches so far, and looks like this.
    Member(Arc<Row>),
    /// It does not.
    Not(Why),
}

impl View {
    /// `None`: the schema lacks a column that the channel names, or has it by a type that cannot be compared.
    pub fn new(spec: &ChannelSpec, feed_schema: &Arc<Schema>) -> Option<Self> {
        let everything = Filter::default();
        let policy = match &spec.policy {
            ResolvedPolicy::Filter(filter) => filter,
            ResolvedPolicy::Public | ResolvedPolicy::Authenticated | ResolvedPolicy::Rls(_) => &everything,
        };
        let shown = |name: &str| {
            feed_schema.columns.iter().position(|column| &*column.name == name).filter(|&at| {
                let column = &feed_schema.columns[at];
                !column.hidden
            })
        };
        let order = spec.order(feed_schema);
        let mut kept: Vec<usize> = match &spec.query.select {
            None => (0..feed_schema.columns.len()).filter(|&at| !feed_schema.columns[at].hidden).collect(),
            Some(select) => select.iter().map(|name| shown(name)).collect::<Option<_>>()?,
        };
        for by in &order {
            kept.push(shown(&by.column)?);
        }
        kept.extend(&feed_schema.key);
        kept.sort_unstable();
        kept.dedup();
        let is_whole = kept.len() == feed_schema.columns.len();
        let schema = if is_whole { feed_schema.clone() } else { Arc::new(projected_schema(feed_schema, &kept)?) };
        let both = spec.filter();
        Some(Self {
            policy: Predicate::new(policy, feed_schema)?,
            query: Predicate::new(&spec.query.filter, feed_schema)?,
            projection: (!is_whole).then(|| kept.into()),
            order: Arc::new(RowOrder::new(&order, &schema)),
            limit: spec.query.limit.map(|limit| limit as usize),
            pinned: both.pinned(feed_schema),
            shows_all: both.is_everything() && spec.query.limit.is_none() && !spec.is_rls(),
            sight: spec.policy.sight(),
            schema_id: schema.id().into(),
            schema,
            feed_schema_id: feed_schema.id().into(),
            feed_schema: feed_schema.clone(),
        })
    }

    /// The view of whoever keeps a feed's rows for others to look at: every row, hidden columns included.
    pub fn whole(feed_schema: &Arc<Schema>) -> Self {
        let schema_id: Arc<str> = feed_schema.id().into();
        Self {
            policy: Predicate::default(),
            query: Predicate::default(),
            projection: None,
            order: Arc::new(RowOrder::new(&[], feed_schema)),
            limit: None,
            pinned: Vec::new(),
            shows_all: true,
            sight: Sight::All,
            schema_id: schema_id.clone(),
            schema: feed_schema.clone(),
            feed_schema_id: schema_id,
            feed_schema: feed_schema.clone(),
        }
    }

    /// Through whose eyes it looks.
    pub fn sight(&self) -> &Sight {
        &self.sight
    }

    /// What becomes of a row of the feed; `None`: it is gone. Of several reasons to leave, the first that holds.
    pub fn judge(&self, row: Option<&Arc<Row>>) -> Verdict {
        self.judge_seen(row, true)
    }

    /// The same of a row that row security may hide.
    pub fn judge_seen(&self, row: Option<&Arc<Row>>, is_seen: bool) -> Verdict {
        match row {
            None => Verdict::Not(Why::Deleted),
            Some(_) if !is_seen => Verdict::Not(Why::Permission),
            Some(row) if !self.policy.holds(row) => Verdict::Not(Why::Permission),
            Some(row) if !self.query.holds(row) => Verdict::Not(Why::Filter),
            Some(row) => Verdict::Member(self.project(row)),
        }
    }

    fn project(&self, row: &Arc<Row>) -> Arc<Row> {
        let Some(kept) = &self.projection else { return row.clone() };
        let mut values: Vec<&str> = kept.iter().map(|&column| row.value(column)).collect();
        // Behind the columns stand the sizes of those that were too large.
        let large = (row.len() > self.feed_schema.columns.len())
            .then(|| self.project_large(row.value(self.feed_schema.columns.len())))
            .flatten();
        values.extend(large.as_deref());
        Arc::new(Row::of_values(&values))
    }

    /// The sizes of large columns that remain; `None` if none does.
    fn project_large(&self, sizes: &str) -> Option<String> {
        let sizes: HashMap<String, &RawValue> = serde_json::from_str(sizes).ok()?;
        let mut text = String::new();
        for column in &self.schema.columns {
            if let Some(size) = sizes.get(&*column.name) {
                text.push(if text.is_empty() { '{' } else { ',' });
                text.push_str(&serde_json::Value::from(&*column.name).to_string());
                text.push(':');
                text.push_str(size.get());
            }
        }
        (!text.is_empty()).then(|| text + "}")
    }

    /// The columns of the channel's rows.
    pub fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }

    /// [`Schema::id`] of the channel's columns: while it stays, so does the channel's form.
    pub fn schema_id(&self) -> &Arc<str> {
        &self.schema_id
    }

    /// The columns of the rows that it judges.
    pub fn feed_schema(&self) -> &Arc<Schema> {
        &self.feed_schema
    }

    /// [`Schema::id`] of the feed's columns: entries of another are not judged by this view.
    pub fn feed_schema_id(&self) -> &Arc<str> {
        &self.feed_schema_id
    }

    /// How the channel's rows are ordered.
    pub fn order(&self) -> &Arc<RowOrder> {
        &self.order
    }

    /// Rows of the channel at most, the first in its order.
    pub fn limit(&self) -> Option<usize> {
        self.limit
    }

    /// Columns of the feed that have one of these values in every row of the channel: what a row is looked up by.
    pub fn pinned(&self) -> &[(usize, Vec<Arc<str>>)] {
        &self.pinned
    }

    /// Whether every row of the feed is a row of the channel, so that one that is missing has been deleted.
    pub fn shows_all(&self) -> bool {
        self.shows_all
    }
}

/// The columns that are kept, and where the key stands among them.
fn projected_schema(schema: &Schema, kept: &[usize]) -> Option<Schema> {
    let key = schema.key.iter().map(|column| kept.binary_search(column).ok()).collect::<Option<_>>()?;
    Some(Schema { columns: kept.iter().map(|&column| schema.columns[column].clone()).collect(), key })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Direction, Nulls, OrderBy};
    use crate::publication::{Column, FeedKey};
    use crate::query::{Comparison, Query};

    fn schema() -> Arc<Schema> {
        let mut columns: Vec<Column> =
            ["note", "id", "n", "body", "tenant"].iter().map(|name| Column::new(*name, "int4")).collect();
        columns[4].hidden = true;
        Arc::new(Schema { columns, key: vec![1] })
    }

    fn equals(column: &str, value: &str) -> Filter {
        Filter::Compare { column: column.into(), op: Comparison::Eq, value: value.into() }
    }

    fn view(policy: ResolvedPolicy, query: Query) -> Option<View> {
        let feed = FeedKey { name: "a".into(), generation: 1 };
        View::new(&ChannelSpec { feed, policy, query }, &schema())
    }

    fn row(text: &str) -> Arc<Row> {
        Arc::new(Row::parse(text).expect("a row"))
    }

    fn select(names: &[&str]) -> Query {
        Query { select: Some(names.iter().map(|&name| name.into()).collect()), ..Query::default() }
    }

    fn seen(view: &View, text: &str) -> String {
        match view.judge(Some(&row(text))) {
            Verdict::Member(row) => row.text().to_owned(),
            Verdict::Not(why) => format!("{why:?}"),
        }
    }

    #[test]
    fn of_several_reasons_to_leave_the_first_is_told() {
        let policy = ResolvedPolicy::Filter(equals("tenant", "7"));
        let view = view(policy, Query { filter: equals("n", "1"), ..Query::default() }).expect("a view");
        assert_eq!(view.judge(None), Verdict::Not(Why::Deleted));
        assert_eq!(seen(&view, "[0,1,2,3,8]"), "Permission");
        assert_eq!(seen(&view, "[0,1,2,3,7]"), "Filter");
        assert_eq!(seen(&view, "[0,1,1,3,8]"), "Permission");
        assert_eq!(seen(&view, "[0,1,1,3,7]"), "[0,1,1,3]", "the policy's column is not shown");
    }

    #[test]
    fn the_columns_asked_for_the_key_and_the_order_remain_in_the_tables_order() {
        let order = vec![OrderBy { column: "n".into(), dir: Direction::Desc, nulls: Nulls::First }];
        let view = view(ResolvedPolicy::Public, Query { order, ..select(&["note"]) }).expect("a view");
        let names: Vec<&str> = view.schema().columns.iter().map(|column| &*column.name).collect();
        assert_eq!((names, &view.schema().key), (vec!["note", "id", "n"], &vec![1]));
        assert_eq!(seen(&view, r#"["x" , 1, null,3,8]"#), r#"["x",1,null]"#);
    }

    #[test]
    fn sizes_of_large_columns_go_with_their_columns() {
        let large = r#"[null,1,2,null,8,{"note":1834021,"body":1900000}]"#;
        let body = view(ResolvedPolicy::Public, select(&["body"])).expect("a view");
        assert_eq!(seen(&body, large), r#"[1,null,{"body":1900000}]"#);
        let neither = view(ResolvedPolicy::Public, select(&["n"])).expect("a view");
        assert_eq!(seen(&neither, large), "[1,2]");
        let both = view(ResolvedPolicy::Public, Query::default()).expect("a view");
        assert_eq!(seen(&both, large), r#"[null,1,2,null,{"note":1834021,"body":1900000}]"#);
    }

    #[test]
    fn what_is_hidden_or_missing_cannot_be_asked_for() {
        assert!(view(ResolvedPolicy::Public, select(&["tenant"])).is_none());
        assert!(view(ResolvedPolicy::Public, select(&["nope"])).is_none());
        let order = vec![OrderBy { column: "tenant".into(), dir: Direction::Asc, nulls: Nulls::Last }];
        assert!(view(ResolvedPolicy::Public, Query { order, ..Query::default() }).is_none());
    }

    #[test]
    fn a_view_of_everything_shares_the_rows() {
        let schema = Arc::new(Schema { columns: vec![Column::new("id", "int4")], key: vec![0] });
        let feed = FeedKey { name: "a".into(), generation: 1 };
        let spec = ChannelSpec { feed, policy: ResolvedPolicy::Public, query: Query::default() };
        let view = View::new(&spec, &schema).expect("a view");
        let whole = row("[1]");
        let Verdict::Member(same) = view.judge(Some(&whole)) else { panic!("a member") };
        assert!(Arc::ptr_eq(&whole, &same) && view.shows_all() && Arc::ptr_eq(view.schema(), &schema));
    }
}
