//! Parses the HTTP header `Retry-After`. The API clients of this workspace share it.

use std::time::{Duration, SystemTime};

/// Parses a `Retry-After` value into a wait of at most `max`; `None` if it is malformed.
///
/// The value is a number of seconds or an HTTP date relative to `now` (RFC 9110, section 10.2.3). A date in the past is
/// a wait of 0.
pub fn parse(value: &str, now: SystemTime, max: Duration) -> Option<Duration> {
    let wait = match value.trim().parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(value.trim()).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.min(max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates_are_parsed_up_to_the_maximum() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:00 GMT").expect("the date is valid");
        let check = |value: &str, seconds: Option<u64>| {
            assert_eq!(parse(value, now, Duration::from_hours(1)), seconds.map(Duration::from_secs), "{value}");
        };
        check("60", Some(60));
        check(" 0 ", Some(0));
        check("Sun, 06 Nov 1994 08:49:37 GMT", Some(37));
        check("Sun, 06 Nov 1994 08:48:37 GMT", Some(0));
        check("99999999", Some(3600));
        check("soon", None);
        check("-1", None);
    }
}
