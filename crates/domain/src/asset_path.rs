//! Where an image's file stands, relative to the storage root.

use uuid::Uuid;

use crate::image_spec::ImageFormat;

/// Where the images of a project stand: `projects/42/assets`.
pub fn folder(project_id: i64) -> String {
    format!("projects/{project_id}/assets")
}

/// The usual path of a project's image: `projects/42/assets/image_001.png`. `index` counts from 1.
pub fn plain(project_id: i64, index: u32, format: ImageFormat) -> String {
    format!("{}/image_{index:03}.{}", folder(project_id), format.extension())
}

/// The path that a later job of the same project takes, so that it never overwrites the plain one.
pub fn with_job(project_id: i64, index: u32, job_id: Uuid, format: ImageFormat) -> String {
    format!("{}/image_{index:03}-{job_id}.{}", folder(project_id), format.extension())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_contract() {
        let job = Uuid::from_u128(0x0199_f3a2_7c1e_7b52_9f0e_2f6c_1d9a_4b10);
        assert_eq!(plain(42, 1, ImageFormat::Png), "projects/42/assets/image_001.png");
        assert_eq!(plain(42, 200, ImageFormat::Jpeg), "projects/42/assets/image_200.jpg");
        assert_eq!(
            with_job(42, 1, job, ImageFormat::Png),
            "projects/42/assets/image_001-0199f3a2-7c1e-7b52-9f0e-2f6c1d9a4b10.png"
        );
    }
}
