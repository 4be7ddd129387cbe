//! What can be done to the system.

use super::Services;

/// One disturbance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Disturbance {
    /// SIGKILL, at any moment.
    Kill,
    /// SIGKILL at one of the points between a command's arrival and its acknowledgement.
    KillAtFailpoint,
    /// SIGTERM: what is in flight is finished.
    Terminate,
    /// SIGSTOP until another worker has taken over, or longer than a lease; then SIGCONT.
    Freeze,
    /// The same, and its connections are cut.
    FreezeAndDisconnect,
    /// A worker's connections to the broker are cut.
    DisconnectBroker,
    /// Its connections to the database are cut.
    DisconnectDatabase,
    /// The broker is stopped, and started again.
    RestartBroker,
    /// The database crashes, and is started again.
    CrashDatabase,
    /// A command is published again.
    PublishDuplicate,
    /// A message that is no command.
    PublishInvalid,
    /// Another command with the id of a known job.
    PublishConflict,
}

impl Disturbance {
    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kill => "worker killed (SIGKILL)",
            Self::KillAtFailpoint => "worker killed at a chosen point of its way",
            Self::Terminate => "worker told to stop (SIGTERM)",
            Self::Freeze => "worker frozen beyond its lease (SIGSTOP)",
            Self::FreezeAndDisconnect => "the same, its connections cut",
            Self::DisconnectBroker => "a worker's connections to the broker cut",
            Self::DisconnectDatabase => "a worker's connections to the database cut",
            Self::RestartBroker => "broker stopped and started",
            Self::CrashDatabase => "database crashed and started",
            Self::PublishDuplicate => "command published again",
            Self::PublishInvalid => "message that is no command",
            Self::PublishConflict => "another command with a known job's id",
        }
    }
}

/// Everything that can be done on this ground, each as often as its weight.
pub(super) fn available(ground: &Services) -> Vec<Disturbance> {
    let mut all = vec![
        Disturbance::Kill,
        Disturbance::KillAtFailpoint,
        Disturbance::KillAtFailpoint,
        Disturbance::Terminate,
        Disturbance::Freeze,
        Disturbance::FreezeAndDisconnect,
        Disturbance::DisconnectBroker,
        Disturbance::DisconnectDatabase,
        Disturbance::PublishDuplicate,
        Disturbance::PublishDuplicate,
        Disturbance::PublishInvalid,
        Disturbance::PublishConflict,
    ];
    if matches!(ground, Services::Owned(_)) {
        all.extend([Disturbance::RestartBroker, Disturbance::CrashDatabase]);
    }
    all
}
