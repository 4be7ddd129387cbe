//! Paths of image files, relative to the storage root.

use uuid::Uuid;

use crate::image_spec::ImageFormat;

/// The directory of all projects.
pub const ROOT: &str = "projects";

/// The directory of a project's images: `projects/42/assets`.
pub fn project_dir(project_id: i64) -> String {
    format!("{ROOT}/{project_id}/assets")
}

/// The default path of a project's image: `projects/42/assets/image_001.png`. `index` counts from 1.
pub fn default_path(project_id: i64, index: u32, format: ImageFormat) -> String {
    format!("{}/image_{index:03}.{}", project_dir(project_id), format.extension())
}

/// The path used by a later job of the same project, so that it never overwrites the default path.
pub fn path_with_job_id(project_id: i64, index: u32, job_id: Uuid, format: ImageFormat) -> String {
    format!("{}/image_{index:03}-{job_id}.{}", project_dir(project_id), format.extension())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_match_the_contract() {
        let job = Uuid::from_u128(0x0199_f3a2_7c1e_7b52_9f0e_2f6c_1d9a_4b10);
        assert_eq!(default_path(42, 1, ImageFormat::Png), "projects/42/assets/image_001.png");
        assert_eq!(default_path(42, 200, ImageFormat::Jpeg), "projects/42/assets/image_200.jpg");
        assert_eq!(
            path_with_job_id(42, 1, job, ImageFormat::Png),
            "projects/42/assets/image_001-0199f3a2-7c1e-7b52-9f0e-2f6c1d9a4b10.png"
        );
    }
}
