//! Image files.

use domain::command::JobKey;
use domain::generation_params::GenerationParams;
use domain::image_metadata::ImageMetadata;
use domain::image_spec::ImageSpec;
use picture::{Buffers, QualityCheck, metadata, process, verify};
use uuid::Uuid;

use crate::assert_valid_message;

/// Processes bytes as an image from the API, then reads the same bytes as a file of unknown origin.
///
/// The result must conform to the specification and contain its metadata, or be an error with a valid message.
pub fn check_picture(bytes: &[u8]) {
    // Small, so that each run is fast; the code path is the same. A noisy image exceeds the limit as PNG and becomes a
    // JPEG.
    let spec = ImageSpec { width: 48, height: 27, max_bytes: 3 * 1024 };
    let params = GenerationParams {
        prompt: "A fox at dusk".to_owned(),
        engine: "an engine".to_owned(),
        ..GenerationParams::default()
    };
    let key = JobKey { job_id: Uuid::from_u128(7), project_id: 42 };
    let metadata = ImageMetadata::new(key, 3, "黃昏的狐狸", &params, 787_078_103, metadata::SOFTWARE);
    match process(bytes.to_vec().into(), &spec, QualityCheck { min_sharpness: 1.0 }, &metadata, &mut Buffers::default())
    {
        Ok(finished) => {
            assert_eq!(verify(&finished.bytes, &spec), Ok(()));
            let read = metadata::read(&finished.bytes).expect("a processed image is readable");
            assert_eq!(metadata::from_texts(&read.texts), Some(metadata));
        }
        Err(defect) => assert_valid_message(&defect.to_string()),
    }
    let _ = QualityCheck::default().check_file(bytes);
    if let Ok(read) = metadata::read(bytes) {
        let _ = metadata::from_texts(&read.texts);
    }
}
