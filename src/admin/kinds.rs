//! Who is a human and who a service, as every list says it.

use std::collections::BTreeMap;

use keystore::{User, UserKind};
use serde::Serialize;

use super::Fault;
use crate::session::House;

/// The kinds of the users there are. In a copy of a bastion's files nobody's is known.
#[derive(Debug, Default)]
pub(super) struct Kinds(BTreeMap<String, UserKind>);

impl Kinds {
    pub(super) async fn of(house: &House) -> Result<Self, Fault> {
        let users: Vec<User> = house.vault.list().await?;
        Ok(Self(users.into_iter().map(|user| (user.name.to_string(), user.kind)).collect()))
    }

    /// The word for it; none of who is no user (any more).
    pub(super) fn word(&self, user: &str) -> Option<&'static str> {
        self.0.get(user).map(|kind| match kind {
            UserKind::Human => "human",
            UserKind::Service => "service",
        })
    }

    /// The name as tables have it.
    pub(super) fn marked(&self, user: &str) -> String {
        match self.0.get(user) {
            Some(UserKind::Service) => format!("{user} (service)"),
            Some(UserKind::Human) | None => user.to_owned(),
        }
    }
}

/// Something of a user's, with what kind of user that is.
#[derive(Debug, Serialize)]
pub(super) struct OfKind<'a, T> {
    #[serde(flatten)]
    pub(super) what: &'a T,
    pub(super) kind: Option<&'static str>,
}
