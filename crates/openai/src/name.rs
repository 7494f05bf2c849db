//! What clients call the model.

/// The name that every server understands, whatever the model is called: programs that ask the policy of a
/// run do not have to know.
const POLICY: &str = "policy";

/// The name of the served model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServedName(String);

impl ServedName {
    /// The name that was configured, else that of the model's folder, else `policy`.
    pub(crate) fn new(configured: Option<&str>, folder: Option<&str>) -> Self {
        Self(configured.or(folder).unwrap_or(POLICY).to_owned())
    }

    /// As clients are told.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a client that asks for `name` means this model.
    pub(crate) fn is(&self, name: &str) -> bool {
        name == self.0 || name == POLICY
    }
}
