//! A path that was freed belongs to the job that has taken it since.

use domain::command::{Command, JobConfig};
use domain::generation_params::GenerationParams;
use domain::image_spec::ImageSpec;
use domain::outcome::ImageFailure;
use domain::style::Style;
use picture::QualityCheck;
use secrecy::SecretString;
use stability_client::{Engine, TextToImage};
use store::{Claim, ClaimOptions, ClaimedJob};
use uuid::Uuid;

use super::*;
use crate::settings::StorageRoot;

const LEASE: Duration = Duration::from_mins(1);

async fn claim(store: &Store, id: u128) -> (JobKey, ClaimedJob) {
    let command = Command {
        job_id: Uuid::from_u128(id),
        project_id: 42,
        image_descriptions: vec!["A fox".to_owned()],
        config: JobConfig::default(),
    };
    let options = ClaimOptions {
        lease_duration: LEASE,
        default_style: &Style::default(),
        default_engine: "core",
        reply: None,
        worker: "test",
    };
    match store.claim(&command, None, options).await.expect("claim the job") {
        Claim::Acquired(claimed) => (command.key(), *claimed),
        claim => panic!("a new job was not acquired: {claim:?}"),
    }
}

async fn open(folder: &std::path::Path) -> (Store, Storage, ImagePool) {
    let url = SecretString::from(format!("sqlite://{}/jobs.db?mode=rwc", folder.display()));
    let store = Store::connect(&url).await.expect("connect");
    store.migrate().await.expect("migrate");
    let storage = Storage::open(&StorageRoot::Folder(folder.join("assets"))).expect("open the storage");
    (store, storage, ImagePool::new(ImageSpec::default(), QualityCheck { min_sharpness: 0.0 }))
}

/// An attempt that failed between writing and renaming its temporary file could not remove it.
#[tokio::test]
async fn temporary_file_of_a_failed_attempt_is_removed() {
    let folder = tempfile::tempdir().expect("create a temporary directory");
    let (store, storage, pool) = open(folder.path()).await;
    let (key, claimed) = claim(&store, 1).await;
    let files = ImageFiles { store, storage, pool, key, lease: claimed.lease, lease_duration: LEASE };
    std::fs::create_dir_all(folder.path().join("assets/a")).expect("a folder");
    std::fs::write(folder.path().join("assets/a/one.png#1"), "half").expect("a temporary file");
    files.write("a/one.png", Bytes::from_static(b"whole")).await.expect("store the file");
    let names = std::fs::read_dir(folder.path().join("assets/a")).expect("the folder");
    let names: Vec<_> = names.map(|file| file.expect("a file").file_name()).collect();
    assert_eq!(names, ["one.png"]);
}

#[tokio::test]
async fn freed_path_taken_by_another_job_is_not_used_again() {
    let folder = tempfile::tempdir().expect("create a temporary directory");
    let (store, storage, pool) = open(folder.path()).await;
    let ((key, first), (_, second)) = (claim(&store, 1).await, claim(&store, 2).await);
    let path = asset_path::default_path(42, 1, ImageFormat::Png);
    let id = first.images[0].id;
    let engine = Engine::default();
    let task = ImageTask {
        id,
        index: 1,
        description: "A fox".to_owned(),
        reserved_path: Some(path.clone()),
        params: GenerationParams::default(),
        request: TextToImage::new(engine, engine.dimensions_for(1920, 1080), "A fox").expect("a valid request"),
        fingerprint: Uuid::from_u128(3),
    };
    assert!(store.reserve_path(first.lease, id, &path).await.expect("reserve the path"));
    let files = ImageFiles { store: store.clone(), storage, pool, key, lease: first.lease, lease_duration: LEASE };
    assert_eq!(files.reserve_path(&task, ImageFormat::Png).await.expect("reserve again"), path);
    let failure = ImageFailure {
        index: 1,
        description: "A fox".to_owned(),
        code: ImageFailureCode::Timeout,
        message: "late".to_owned(),
        attempts: 1,
        retryable: true,
    };
    store.fail_image(first.lease, id, &failure, None).await.expect("fail the image, which frees its path");
    assert!(store.reserve_path(second.lease, second.images[0].id, &path).await.expect("reserve the freed path"));
    let other = files.reserve_path(&task, ImageFormat::Png).await.expect("reserve another path");
    assert_eq!(other, asset_path::path_with_job_id(42, 1, key.job_id, ImageFormat::Png));
}
