//! What is done with one command from the broker, from its body to its settlement.

use std::time::Duration;

use domain::command::{Command, InvalidCommand, JobKey, Rules};
use domain::digest;
use domain::event::{Context, Event, JobError, Totals};
use domain::failure::JobFailureCode;
use stability_client::{CFG_SCALE, Engine, STEPS, StylePreset};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};
use tracing::{Instrument, Span, error, info, info_span, warn};
use uuid::Uuid;

use crate::broker::{BrokerError, GENERATE_KEY, Incoming, Publisher, Settlement};
use crate::causes;
use crate::event_sink::{EventSink, PublishError, Routed};
use crate::job::{Envelope, JobRunError, Stopping, Verdict, Workshop};
use crate::pause;
use crate::settings::JobSettings;
use crate::store::{Standing, StoreError, TerminalEvent};
use crate::telemetry::metrics::{Coded, DeadLetterReason, JobOutcome, Metrics, Stage};
use crate::telemetry::trace::{self, CONSUMED};

/// The reason of a dead letter whose id belongs to another command.
const CONFLICT: &str = "job_id_conflict";

/// What the API behind this worker takes.
pub fn rules() -> Rules {
    Rules {
        engines: Engine::ALL.iter().map(|engine| engine.id()).collect(),
        style_presets: StylePreset::ALL.iter().map(|preset| preset.as_str()).collect(),
        cfg_scale: CFG_SCALE,
        steps: STEPS,
    }
}

/// Why a command could not be dealt with now.
#[derive(Debug, thiserror::Error)]
enum IntakeError {
    #[error(transparent)]
    Job(#[from] JobRunError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Publish(#[from] PublishError),
}

impl Coded for IntakeError {
    fn code(&self) -> &'static str {
        match self {
            Self::Job(JobRunError::Store(error)) | Self::Store(error) => error.code(),
            Self::Broker(error) => error.code(),
            Self::Publish(error) => error.code(),
        }
    }
}

/// Deals with commands. Clones share everything.
#[derive(Clone)]
pub struct Intake {
    workshop: Workshop,
    publisher: Publisher,
    rules: Rules,
    /// A command that cannot be dealt with now comes back after this.
    later: Duration,
    /// A command whose job somebody else works on comes back after this.
    held: Duration,
    /// How long the lease of a worker holds that is not heard of.
    lease: Duration,
}

impl Intake {
    /// Brings the parts together.
    pub fn new(workshop: Workshop, publisher: Publisher, jobs: &JobSettings) -> Self {
        let (later, held, lease) = (jobs.delay_after(1), jobs.held_delay(), jobs.lease);
        Self { workshop, publisher, rules: rules(), later, held, lease }
    }

    /// Deals with a command and says what the broker is to hear. Never fails: a command that cannot be dealt with now comes back.
    pub async fn handle(self, incoming: Incoming, stop: Stopping) -> Settlement {
        let span = self.span("process", "consumer", &incoming);
        trace::follow(&span, incoming.trace().as_ref());
        // Boxed, here and below, as it holds all that a job waits for.
        Box::pin(self.processed(incoming, stop)).instrument(span).await
    }

    async fn processed(self, incoming: Incoming, stop: Stopping) -> Settlement {
        let begun = Instant::now();
        let read = async {
            pause::point("before reading").await;
            self.parsed(&incoming)
        };
        let (settlement, outcome) = match read.instrument(self.span("receive", "client", &incoming)).await {
            Ok(command) => {
                let span = trace::job_span(&command);
                self.settled(&incoming, Box::pin(self.run(&incoming, &command, &stop))).instrument(span).await
            }
            Err(invalid) => {
                trace::failed(JobFailureCode::InvalidRequest.as_str(), &invalid.to_string());
                self.settled(&incoming, Box::pin(self.refuse(&incoming, invalid))).await
            }
        };
        if let JobOutcome::Broken(code) = outcome {
            trace::failed(code, "the command comes back later");
        }
        self.metrics().delivery(outcome, begun.elapsed());
        settlement
    }

    /// A consumer's span, by OpenTelemetry's conventions for RabbitMQ.
    fn span(&self, operation: &'static str, kind: &'static str, incoming: &Incoming) -> Span {
        let (host, port) = self.publisher.server();
        info_span!(
            "consume",
            otel.name = format!("{operation} {CONSUMED}"),
            otel.kind = kind,
            messaging.system = "rabbitmq",
            messaging.operation.name = operation,
            "messaging.operation.type" = operation,
            messaging.destination.name = CONSUMED,
            messaging.rabbitmq.destination.routing_key = GENERATE_KEY,
            messaging.message.id = incoming.message_id(),
            messaging.message.body.size = incoming.body.len(),
            server.address = host,
            server.port = port,
            asset_worker.deliveries = incoming.deliveries() + 1,
        )
    }

    /// Where it counts.
    pub(crate) fn metrics(&self) -> &Metrics {
        self.workshop.metrics()
    }

    /// The command, where its message says of its body what it is.
    fn parsed(&self, incoming: &Incoming) -> Result<Command, InvalidCommand> {
        let parsed = Command::parse(&incoming.body, &self.rules);
        let Some(wrong) = incoming.wrong_encoding() else { return parsed };
        let (mut violations, key) = match parsed {
            Ok(command) => (Vec::new(), Some(command.key())),
            Err(InvalidCommand { violations, key }) => (violations, key),
        };
        violations.insert(0, wrong);
        Err(InvalidCommand { violations, key })
    }

    /// What the broker is to hear, also where our own infrastructure failed.
    async fn settled(
        &self,
        incoming: &Incoming,
        dealt_with: impl Future<Output = Result<(Settlement, JobOutcome), IntakeError>>,
    ) -> (Settlement, JobOutcome) {
        let error = match dealt_with.await {
            Ok(settled) => return settled,
            Err(error) => error,
        };
        let outcome = JobOutcome::Broken(error.code());
        trace::failed(error.code(), &error.to_string());
        let error = causes::joined(&error);
        match self.publisher.retry_later(incoming, self.later).await {
            Ok(()) => {
                warn!(error, delay = ?self.later, "a command could not be dealt with; it comes back later");
                (Settlement::Done, outcome)
            }
            Err(unpublished) => {
                warn!(error, %unpublished, "a command could not be dealt with; it goes back to its queue");
                (Settlement::GiveUp, outcome)
            }
        }
    }

    async fn run(
        &self,
        incoming: &Incoming,
        command: &Command,
        stop: &Stopping,
    ) -> Result<(Settlement, JobOutcome), IntakeError> {
        if incoming.is_its_last_delivery()
            && let Standing::Open = self.workshop.store().standing(command.job_id).await?
        {
            // The broker counts deliveries, which must not be those of a job whose losses are counted in its row.
            self.publisher.retry_later(incoming, self.held).await?;
            return Ok((Settlement::Done, JobOutcome::Retried));
        }
        let verdict = self.worked_on(incoming, command, stop).await?;
        let outcome = verdict.outcome();
        Ok((self.followed(incoming, command, verdict).await?, outcome))
    }

    /// Does what a verdict asks for, and says what the broker is to hear.
    async fn followed(
        &self,
        incoming: &Incoming,
        command: &Command,
        verdict: Verdict,
    ) -> Result<Settlement, IntakeError> {
        match verdict {
            Verdict::Ended(terminal, _) => {
                self.publish_terminal(command.job_id, &terminal).await?;
                pause::point("after the event").await;
                if terminal.exhausted {
                    self.publisher.dead_letter(incoming, JobFailureCode::AttemptsExhausted.as_str()).await?;
                    self.metrics().dead_letter(DeadLetterReason::AttemptsExhausted);
                }
                Ok(Settlement::Done)
            }
            Verdict::TryAgain(delay) => {
                self.publisher.retry_later(incoming, delay).await?;
                Ok(Settlement::Done)
            }
            Verdict::Held | Verdict::LeaseLost => {
                info!("somebody else works on the job; its command comes back later");
                self.publisher.retry_later(incoming, self.held).await?;
                Ok(Settlement::Done)
            }
            Verdict::Interrupted if !incoming.was_delivered_before() => {
                info!("the rest of the job is left to whoever is free");
                // Its place is before all that wait; once, since the broker counts.
                Ok(Settlement::Return)
            }
            Verdict::Interrupted | Verdict::Yielded => {
                info!("the rest of the job comes after the jobs that wait");
                self.publisher.hand_back(incoming).await?;
                Ok(Settlement::Done)
            }
            Verdict::Conflict => {
                warn!("another command has this job id; it goes to the dead letters");
                self.publisher.dead_letter(incoming, CONFLICT).await?;
                self.metrics().dead_letter(DeadLetterReason::Conflict);
                Ok(Settlement::Done)
            }
        }
    }

    /// Works on a job. Where its command was given to somebody before who holds the job still, that worker is lost or lost the broker, and the job is
    /// waited for as long as its lease may hold: at the end of the queue it would wait for all that came later.
    async fn worked_on(&self, incoming: &Incoming, command: &Command, stop: &Stopping) -> Result<Verdict, JobRunError> {
        let trace = incoming.trace();
        let envelope = Envelope { trace: trace.as_ref(), urgent: incoming.is_urgent() };
        let until = Instant::now() + self.lease + self.held;
        loop {
            let verdict = self.workshop.run(command, envelope, &self.publisher, stop).await?;
            let may_be_lost = incoming.was_delivered_before() && Instant::now() < until;
            if !(may_be_lost && matches!(verdict, Verdict::Held)) {
                return Ok(verdict);
            }
            tokio::select! {
                () = sleep(self.held) => {}
                () = stop.soon.cancelled() => return Ok(Verdict::Interrupted),
            }
        }
    }

    async fn publish_terminal(&self, job_id: Uuid, terminal: &TerminalEvent) -> Result<(), IntakeError> {
        pause::point("before the event").await;
        let published = self.metrics().stage(Stage::Publish, self.publish(&terminal.event)).await;
        self.metrics().terminal_event(match &published {
            Ok(Routed::Taken) => "published",
            Ok(Routed::Nobody) => "unrouted",
            Err(_) => "failed",
        });
        match published? {
            Routed::Taken if terminal.published => {}
            Routed::Taken => self.workshop.store().mark_published(job_id).await?,
            Routed::Nobody => {
                warn!(
                    event = terminal.event.kind.as_str(),
                    "no queue is bound for the job's terminal event; it is kept with the job"
                );
            }
        }
        Ok(())
    }

    async fn publish(&self, event: &Event) -> Result<Routed, PublishError> {
        EventSink::publish(&self.publisher, event).await
    }

    /// Deals with a command that the broker itself gave to the dead letters, since it ended its worker each time it was delivered: it stays there, and
    /// its job has failed; unless the job is known, and so can be worked on.
    pub async fn fallen(self, incoming: Incoming) -> Settlement {
        if !incoming.has_fallen() {
            // One of us gave it to them, and dealt with its job.
            return Settlement::Done;
        }
        let span = self.span("process", "consumer", &incoming);
        trace::follow(&span, incoming.trace().as_ref());
        match self.buried(&incoming).instrument(span).await {
            Ok(()) => Settlement::Done,
            Err(error) => {
                warn!(
                    error = causes::joined(&error),
                    "a fallen command could not be dealt with; it is looked at again"
                );
                Settlement::Return
            }
        }
    }

    async fn buried(&self, incoming: &Incoming) -> Result<(), IntakeError> {
        let (key, digest) = match Command::parse(&incoming.body, &self.rules) {
            Ok(command) => (Some(command.key()), command.digest()),
            Err(invalid) => (invalid.key, digest::sha256(&incoming.body)),
        };
        let Some(key) = key else {
            self.note_fallen();
            return Ok(());
        };
        // As a job's own span, so that its lines can be found.
        let span = info_span!("job", job.id = %key.job_id, project.id = key.project_id);
        self.buried_job(incoming, key, digest).instrument(span).await
    }

    /// A command stays in the dead letters. Told when that is settled, since what fails before is looked at again.
    fn note_fallen(&self) {
        self.metrics().dead_letter(DeadLetterReason::DeliveryLimit);
        error!("a command was delivered too often without being settled; it stays in the dead letters");
    }

    async fn buried_job(&self, incoming: &Incoming, key: JobKey, digest: String) -> Result<(), IntakeError> {
        let store = self.workshop.store();
        match store.standing(key.job_id).await? {
            Standing::Ended(event) => {
                let terminal = TerminalEvent { event, published: false, exhausted: false };
                self.publish_terminal(key.job_id, &terminal).await?;
                self.note_fallen();
                Ok(())
            }
            Standing::Open => {
                self.publisher.hand_back(incoming).await?;
                warn!("a command was delivered too often without being settled; its job is known, and goes on");
                Ok(())
            }
            Standing::Unknown => {
                let code = JobFailureCode::AttemptsExhausted;
                let reason = "its command was delivered again and again, and ended or lost its worker each time";
                let event = unrun_event(incoming, key, code, reason);
                if let Some(event) = store.record_unrun(key, digest, code, reason, &event).await? {
                    let terminal = TerminalEvent { event, published: false, exhausted: false };
                    self.publish_terminal(key.job_id, &terminal).await?;
                }
                self.note_fallen();
                Ok(())
            }
        }
    }

    /// A body that is no command: a dead letter, and where its job can be named, that job's end.
    async fn refuse(
        &self,
        incoming: &Incoming,
        invalid: InvalidCommand,
    ) -> Result<(Settlement, JobOutcome), IntakeError> {
        let reason = invalid.to_string();
        warn!(reason, "a message is no command; it goes to the dead letters");
        if let Some(key) = invalid.key {
            let code = JobFailureCode::InvalidRequest;
            let event = unrun_event(incoming, key, code, &reason);
            let digest = digest::sha256(&incoming.body);
            let known = self.workshop.store().record_unrun(key, digest, code, &reason, &event).await?;
            if let Some(event) = known {
                self.publish_terminal(key.job_id, &TerminalEvent { event, published: false, exhausted: false }).await?;
            }
        }
        self.publisher.dead_letter(incoming, &format!("{}: {reason}", JobFailureCode::InvalidRequest)).await?;
        self.metrics().dead_letter(DeadLetterReason::InvalidRequest);
        Ok((Settlement::Done, JobOutcome::Failed(JobFailureCode::InvalidRequest)))
    }
}

/// The end of a job that never ran.
fn unrun_event(incoming: &Incoming, key: JobKey, code: JobFailureCode, reason: &str) -> Event {
    let trace = trace::current().or_else(|| incoming.trace());
    let context = Context { key, trace, time: OffsetDateTime::now_utc() };
    let error = JobError { code, message: reason.to_owned() };
    Event::terminal(&context, &[], Totals { cost_usd: 0.0, duration_ms: 0 }, Some(&error))
}
