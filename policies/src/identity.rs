//! Who a policy says the workload is.
//!
//! In: the `process` section. Out: names or numbers. Must not: look a name up; that is done in the new root.

use molt_core::spec::Principal;

use crate::schema::Policy;

/// What the policy says; `None` where it leaves the choice to the spec and the image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunAs {
    /// `run_as_user`.
    pub user: Option<Principal>,
    /// `run_as_group`.
    pub group: Option<Principal>,
}

impl Policy {
    /// The `process` section as names and numbers.
    pub fn run_as(&self) -> RunAs {
        let Some(process) = &self.process else { return RunAs::default() };
        RunAs { user: process.run_as_user.parse().ok(), group: process.run_as_group.parse().ok() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_told_apart_and_nothing_is_nothing() {
        let of = |text: &str| crate::parse(text.as_bytes()).unwrap().run_as();
        let run_as = of("version: 1\nprocess: {run_as_user: sandbox, run_as_group: \"1000\"}");
        assert_eq!(run_as.user, Some(Principal::Name("sandbox".into())));
        assert_eq!(run_as.group, Some(Principal::Id(1000)));
        assert_eq!(of("version: 1\nprocess: {run_as_user: \"\"}"), RunAs::default());
        assert_eq!(of("version: 1"), RunAs::default());
    }
}
