//! A channel: publication + resolved policy + query, in canonical form. The unit of caching, of fan-out and of permission.

use crate::identity::{Onlooker, ResolvedPolicy};
use crate::protocol::{Direction, Nulls, OrderBy};
use crate::publication::{FeedKey, Schema};
use crate::query::{Filter, Query};
use crate::version::digest;

/// Publication + resolved policy + query, in canonical form: the unit of caching, of fan-out and of permission.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChannelSpec {
    pub feed: FeedKey,
    pub policy: ResolvedPolicy,
    pub query: Query,
}

impl ChannelSpec {
    /// The channel's part of a store key: permission and query, so that no entry is ever shared across them. Clients
    /// choose a part of what goes in, so this is a hash for which nobody can make two channels collide.
    pub fn hash(&self) -> String {
        digest(&self.canonical())
    }

    /// The tag that clients resume with: the channel, and the columns with types and key that its rows have.
    pub fn tag(&self, schema: &Schema) -> String {
        digest(&format!("{} {}", self.canonical(), schema.id()))
    }

    /// Whether it means the same whatever the columns are.
    pub fn names_no_column(&self) -> bool {
        self.filter().columns().is_empty() && self.query.select.is_none() && self.query.order.is_empty()
    }

    /// Whose sight of the feed the leader has to work out for it; `None` where row security does not decide.
    pub fn onlooker(&self) -> Option<Onlooker> {
        match &self.policy {
            ResolvedPolicy::Rls(identity) => Some(Onlooker { feed: self.feed.clone(), identity: identity.clone() }),
            ResolvedPolicy::Public | ResolvedPolicy::Authenticated | ResolvedPolicy::Filter(_) => None,
        }
    }

    /// The channel as one text: generation, policy, query. JSON texts, so nothing in a value can be taken for what stands
    /// between two.
    pub fn canonical(&self) -> String {
        let Query { filter, select, order, limit } = &self.query;
        let parts = serde_json::to_string(&(&self.policy, filter, select, order, limit));
        format!("{}?{}", self.feed, parts.expect("texts and numbers are always JSON"))
    }

    /// The order of the channel's rows: what the query names, and the key, ascending, as the last tie-break.
    pub fn order(&self, schema: &Schema) -> Vec<OrderBy> {
        let mut order = self.query.order.clone();
        for name in schema.key_names() {
            if !order.iter().any(|by| by.column == *name) {
                order.push(OrderBy { column: name.clone(), dir: Direction::Asc, nulls: Nulls::Last });
            }
        }
        order
    }

    /// What has to hold for a row of the channel, as far as it is a filter: policy and query.
    pub fn filter(&self) -> Filter {
        let query = self.query.filter.clone();
        match &self.policy {
            ResolvedPolicy::Filter(policy) => Filter::all([policy.clone(), query]),
            ResolvedPolicy::Public | ResolvedPolicy::Authenticated | ResolvedPolicy::Rls(_) => query,
        }
    }

    /// Whether row security decides which rows it has.
    pub fn is_rls(&self) -> bool {
        matches!(self.policy, ResolvedPolicy::Rls(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::Comparison;

    #[test]
    fn equal_queries_are_one_channel_and_different_ones_are_not() {
        let spec = |filters: &[(&str, &str)]| {
            let filter = Filter::all(filters.iter().map(|(column, value)| Filter::Compare {
                column: (*column).into(),
                op: Comparison::Eq,
                value: (*value).into(),
            }));
            let feed = FeedKey { name: "orders".into(), generation: 1 };
            ChannelSpec { feed, policy: ResolvedPolicy::Public, query: Query { filter, ..Query::default() } }.hash()
        };
        assert_eq!(spec(&[("a", "1"), ("b", "2")]), spec(&[("b", "2"), ("a", "1")]));
        let different = [
            spec(&[]),
            spec(&[("a", "1")]),
            spec(&[("a", "\"1\"")]),
            spec(&[("a", "\"1&\\\"b\\\"=2\"")]),
            spec(&[("a", "1"), ("b", "2")]),
        ];
        assert_eq!(different.iter().collect::<std::collections::HashSet<_>>().len(), different.len());
    }
}
