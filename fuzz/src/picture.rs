//! The pictures themselves.

use domain::command::JobKey;
use domain::image_spec::ImageSpec;
use domain::recipe::Recipe;
use domain::story::Story;
use picture::{Glance, check, finish, texts};
use uuid::Uuid;

use crate::assert_sentence;

/// Makes a stored picture of bytes, as of what the API sends: one that keeps to the specification and tells its story, or one sentence. Then reads
/// the same bytes as a file that somebody may have put there.
pub fn picture(bytes: &[u8]) {
    // Small, so that many are made: the way is the same. What is noisy is too large for a PNG, and becomes a JPEG.
    let spec = ImageSpec { width: 48, height: 27, max_bytes: 3 * 1024 };
    let recipe = Recipe { prompt: "A fox at dusk".to_owned(), engine: "an engine".to_owned(), ..Recipe::default() };
    let key = JobKey { job_id: Uuid::from_u128(7), project_id: 42 };
    let story = Story::new(key, 3, "黃昏的狐狸", &recipe, 787_078_103, texts::SOFTWARE);
    match finish(bytes, &spec, Glance { min_sharpness: 1.0 }, &story) {
        Ok(finished) => {
            assert_eq!(check(&finished.bytes, &spec), Ok(()));
            let read = texts::read(&finished.bytes).expect("what was stored is read");
            assert_eq!(texts::story(&read.texts), Some(story));
        }
        Err(defect) => assert_sentence(&defect.to_string()),
    }
    let _ = Glance::default().at_file(bytes);
    if let Ok(read) = texts::read(bytes) {
        let _ = texts::story(&read.texts);
    }
}
