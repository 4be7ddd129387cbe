//! Seeds of images: the same request with the same seed produces the same image.

/// Returns the seed of the image with `index` (from 1) of a job, from 1 to `max`; 0 lets the API choose.
///
/// If the job's seed is not 0, the image with index 1 gets it and each following image gets the next number, so that
/// the images differ and the job is reproducible. `max` is followed by 1, because 0 means no seed. A job's seed above
/// `max` is returned unchanged; the later validation of the request rejects it.
pub fn image_seed(job_seed: u32, index: u32, max: u32) -> u32 {
    if job_seed == 0 || job_seed > max {
        return job_seed;
    }
    let offset = u64::from(index.saturating_sub(1));
    let seed = (u64::from(job_seed) - 1 + offset) % u64::from(max) + 1;
    u32::try_from(seed).unwrap_or(max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_a_job_have_consecutive_seeds() {
        let check = |job_seed, index, expected| {
            assert_eq!(image_seed(job_seed, index, u32::MAX), expected, "{job_seed} {index}");
        };
        check(0, 1, 0);
        check(0, 200, 0);
        check(7, 1, 7);
        check(7, 2, 8);
        check(7, 200, 206);
        check(u32::MAX, 1, u32::MAX);
        check(u32::MAX, 2, 1);
        check(u32::MAX - 1, 3, 1);
        assert_eq!(image_seed(u32::MAX, 1, u32::MAX - 1), u32::MAX);
        assert_eq!(image_seed(u32::MAX - 1, 2, u32::MAX - 1), 1);
    }
}
