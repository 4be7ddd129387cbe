//! The images of a claimed job.

use domain::command::Command;
use domain::outcome::ImageState;
use uuid::Uuid;

use super::asset;

/// An image of a claimed job.
#[derive(Debug)]
pub struct ClaimedImage {
    /// The row's id.
    pub id: Uuid,
    /// Index within the job, from 1.
    pub index: u32,
    /// The index that its seed follows from: not its own if it is made again.
    pub seed_index: u32,
    /// The description from the command.
    pub description: String,
    /// Whether it is untried, completed or failed.
    pub state: ImageState,
    /// The path reserved by an earlier attempt.
    pub file_path: Option<String>,
    /// Number of requests sent so far.
    pub requests: u32,
}

impl ClaimedImage {
    /// The images of a job that has no rows yet. Their ids are nil.
    pub fn of_new_job(command: &Command) -> Vec<Self> {
        let image = |(index, description): (u32, &String)| Self {
            id: Uuid::nil(),
            index,
            seed_index: index,
            description: description.clone(),
            state: ImageState::Untried,
            file_path: None,
            requests: 0,
        };
        (1..).zip(&command.image_descriptions).map(image).collect()
    }
}

/// The images in these rows, which are in the order of their index.
pub(super) fn claimed_images(rows: &[asset::Model], command: &Command) -> Vec<ClaimedImage> {
    let image = |(row, description): (&asset::Model, &String)| ClaimedImage {
        id: row.id,
        index: row.image_index(),
        seed_index: row.seed_index(),
        description: description.clone(),
        state: row.state(),
        file_path: row.file_path.clone(),
        requests: u32::try_from(row.requests).unwrap_or_default(),
    };
    rows.iter().zip(&command.image_descriptions).map(image).collect()
}
