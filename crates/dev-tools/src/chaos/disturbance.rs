//! Disturbances of the system.

use super::Services;

/// A disturbance of the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Disturbance {
    /// A worker is killed (SIGKILL) at any moment.
    Kill,
    /// A worker is killed (SIGKILL) at a failpoint between the delivery of a command and its acknowledgement.
    KillAtFailpoint,
    /// A worker is shut down (SIGTERM): requests in flight finish within the grace period.
    Terminate,
    /// A worker is frozen (SIGSTOP) until another one has taken over or longer than a lease, then continued (SIGCONT).
    Freeze,
    /// A worker is frozen in the same way, and its connections are closed.
    FreezeAndDisconnect,
    /// A worker's connections to the broker are closed.
    DisconnectBroker,
    /// A worker's connections to the database are closed.
    DisconnectDatabase,
    /// The broker is stopped and started again.
    RestartBroker,
    /// The database crashes and is started again.
    CrashDatabase,
    /// The broker raises a memory alarm for some seconds: it blocks the connections that publish.
    BlockPublishing,
    /// The storage fails for some seconds: it can be neither read nor written.
    StorageOutage,
    /// As [`StorageOutage`](Self::StorageOutage), and a worker is killed meanwhile.
    StorageOutageAndKill,
    /// The account gate is closed by `pause` for some seconds and opened by `resume`.
    CloseGate,
    /// As [`CloseGate`](Self::CloseGate), and a worker is killed meanwhile.
    CloseGateAndKill,
    /// The API refuses the key for some seconds.
    RefuseKey,
    /// As [`RefuseKey`](Self::RefuseKey), and a worker is killed meanwhile.
    RefuseKeyAndKill,
    /// A command is published again.
    PublishDuplicate,
    /// A message that is not a command is published.
    PublishInvalid,
    /// A different command with the id of a known job is published.
    PublishConflict,
    /// A job is cancelled by `jobs cancel`: running, waiting, seldom ended, or before its command arrives.
    Cancel,
    /// A job is cancelled by a message, and a worker is killed.
    CancelAndKill,
    /// The failed images of an ended job are made again by `jobs retry`.
    Retry,
}

impl Disturbance {
    /// Returns the description that the report shows.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kill => "worker killed (SIGKILL)",
            Self::KillAtFailpoint => "worker killed at a failpoint (SIGKILL)",
            Self::Terminate => "worker shut down (SIGTERM)",
            Self::Freeze => "worker frozen beyond its lease (SIGSTOP)",
            Self::FreezeAndDisconnect => "worker frozen beyond its lease, and its connections closed",
            Self::DisconnectBroker => "connections of a worker to the broker closed",
            Self::DisconnectDatabase => "connections of a worker to the database closed",
            Self::RestartBroker => "broker restarted",
            Self::CrashDatabase => "database crashed and restarted",
            Self::BlockPublishing => "memory alarm of the broker, which blocks publishing",
            Self::StorageOutage => "storage unavailable for some seconds",
            Self::StorageOutageAndKill => {
                "storage unavailable for some seconds, and a worker killed (SIGKILL) meanwhile"
            }
            Self::CloseGate => "account gate closed and opened (pause, resume)",
            Self::CloseGateAndKill => "account gate closed, and a worker killed (SIGKILL) before it opens",
            Self::RefuseKey => "API key refused for some seconds",
            Self::RefuseKeyAndKill => "API key refused for some seconds, and a worker killed (SIGKILL) meanwhile",
            Self::PublishDuplicate => "command published again",
            Self::PublishInvalid => "invalid message published",
            Self::PublishConflict => "different command published with the id of a known job",
            Self::Cancel => "job cancelled (jobs cancel)",
            Self::CancelAndKill => "job cancelled by a message, and a worker killed (SIGKILL)",
            Self::Retry => "failed images of an ended job made again (jobs retry)",
        }
    }
}

/// Returns the disturbances that are possible with these services; one that is listed twice occurs twice as often.
pub(super) fn available(services: &Services) -> Vec<Disturbance> {
    let mut all = vec![
        Disturbance::Kill,
        Disturbance::KillAtFailpoint,
        Disturbance::KillAtFailpoint,
        Disturbance::Terminate,
        Disturbance::Freeze,
        Disturbance::FreezeAndDisconnect,
        Disturbance::DisconnectBroker,
        Disturbance::DisconnectDatabase,
        Disturbance::StorageOutage,
        Disturbance::StorageOutageAndKill,
        Disturbance::CloseGate,
        Disturbance::CloseGateAndKill,
        Disturbance::RefuseKey,
        Disturbance::RefuseKeyAndKill,
        Disturbance::PublishDuplicate,
        Disturbance::PublishDuplicate,
        Disturbance::PublishInvalid,
        Disturbance::PublishConflict,
        Disturbance::Cancel,
        Disturbance::Cancel,
        Disturbance::CancelAndKill,
        Disturbance::Retry,
        Disturbance::Retry,
    ];
    if matches!(services, Services::Owned(_)) {
        all.extend([Disturbance::RestartBroker, Disturbance::BlockPublishing, Disturbance::CrashDatabase]);
    }
    all
}
