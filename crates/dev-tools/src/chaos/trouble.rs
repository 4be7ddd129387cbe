//! What can be done to the system.

use super::Ground;

/// One disturbance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// SIGKILL, at any moment.
    Kill,
    /// SIGKILL at one of the points between a command's arrival and its acknowledgement.
    KillAtPoint,
    /// SIGTERM: what is in flight is finished.
    Terminate,
    /// SIGSTOP until another worker has taken over, or longer than a lease; then SIGCONT.
    Freeze,
    /// The same, and its connections are cut.
    FreezeAndCut,
    /// A worker's connections to the broker are cut.
    CutBroker,
    /// Its connections to the database are cut.
    CutDatabase,
    /// The broker is stopped, and started again.
    BrokerAway,
    /// The database crashes, and is started again.
    DatabaseAway,
    /// A command is published again.
    Repeat,
    /// A message that is no command.
    Rubbish,
    /// Another command with the id of a known job.
    Conflict,
}

impl Trouble {
    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kill => "worker killed (SIGKILL)",
            Self::KillAtPoint => "worker killed at a chosen point of its way",
            Self::Terminate => "worker told to stop (SIGTERM)",
            Self::Freeze => "worker frozen beyond its lease (SIGSTOP)",
            Self::FreezeAndCut => "the same, its connections cut",
            Self::CutBroker => "a worker's connections to the broker cut",
            Self::CutDatabase => "a worker's connections to the database cut",
            Self::BrokerAway => "broker stopped and started",
            Self::DatabaseAway => "database crashed and started",
            Self::Repeat => "command published again",
            Self::Rubbish => "message that is no command",
            Self::Conflict => "another command with a known job's id",
        }
    }
}

/// Everything that can be done on this ground, each as often as its weight.
pub(super) fn all(ground: &Ground) -> Vec<Trouble> {
    let mut all = vec![
        Trouble::Kill,
        Trouble::KillAtPoint,
        Trouble::KillAtPoint,
        Trouble::Terminate,
        Trouble::Freeze,
        Trouble::FreezeAndCut,
        Trouble::CutBroker,
        Trouble::CutDatabase,
        Trouble::Repeat,
        Trouble::Repeat,
        Trouble::Rubbish,
        Trouble::Conflict,
    ];
    if matches!(ground, Ground::Own(_)) {
        all.extend([Trouble::BrokerAway, Trouble::DatabaseAway]);
    }
    all
}
