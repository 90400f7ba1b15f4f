//! Users and groups as options name them: by name, or by number.
//!
//! A name is looked up where the system has its accounts (getpwnam(3), so also in LDAP and the like); a number need not
//! belong to anybody. Both are looked up when an option is read, so that a name that is wrong is wrong usage.

use nix::unistd;

/// A user, and the group that processes of theirs belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    /// None for a number that belongs to nobody.
    pub(crate) primary_gid: Option<u32>,
}

/// A group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) gid: u32,
}

pub(crate) fn parse_user(text: &str) -> Result<User, String> {
    let of = |user: unistd::User| User { uid: user.uid.as_raw(), primary_gid: Some(user.gid.as_raw()) };
    match number(text)? {
        Some(uid) => {
            let found = unistd::User::from_uid(uid.into()).ok().flatten();
            Ok(found.map_or(User { uid, primary_gid: None }, of))
        }
        None => match unistd::User::from_name(text) {
            Ok(Some(user)) => Ok(of(user)),
            Ok(None) => Err("there is no user of this name".into()),
            Err(error) => Err(format!("cannot look the user up: {error}")),
        },
    }
}

pub(crate) fn parse_group(text: &str) -> Result<Group, String> {
    if let Some(gid) = number(text)? {
        return Ok(Group { gid });
    }
    match unistd::Group::from_name(text) {
        Ok(Some(group)) => Ok(Group { gid: group.gid.as_raw() }),
        Ok(None) => Err("there is no group of this name".into()),
        Err(error) => Err(format!("cannot look the group up: {error}")),
    }
}

/// The number that a text is, if it is one. The largest stands for "no change" in system calls.
fn number(text: &str) -> Result<Option<u32>, String> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse() {
        Ok(u32::MAX) | Err(_) => Err(format!("must be a name, or a number up to {}", u32::MAX - 1)),
        Ok(id) => Ok(Some(id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_the_same_accounts() {
        let root = User { uid: 0, primary_gid: Some(0) };
        assert_eq!((parse_user("root"), parse_user("0")), (Ok(root), Ok(root)));
        assert_eq!((parse_group("root"), parse_group("0")), (Ok(Group { gid: 0 }), Ok(Group { gid: 0 })));
    }

    #[test]
    fn a_number_need_not_belong_to_anybody_and_a_name_must() {
        let nobody_has = 4_000_000_123;
        assert_eq!(parse_user("4000000123"), Ok(User { uid: nobody_has, primary_gid: None }));
        assert_eq!(parse_group("4000000123"), Ok(Group { gid: nobody_has }));
        assert_eq!(parse_user("no such user").unwrap_err(), "there is no user of this name");
        assert_eq!(parse_group("").unwrap_err(), "there is no group of this name");
        assert_eq!(
            parse_group("4294967295").unwrap_err(),
            "must be a name, or a number up to 4294967294",
            "the system would take it for no change"
        );
    }
}
