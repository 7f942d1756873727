//! Dates, times and intervals from Postgres' texts, as numbers in their order.

const DAY_US: i128 = 86_400_000_000;

/// Microseconds since 1970 of a date, a timestamp, or a timestamp with its zone: `0044-03-15T01:02:03.5+00:00 BC`,
/// `infinity`. Only the values of one type are comparable.
pub(super) fn moment(text: &str) -> Option<i128> {
    if let Some(infinite) = infinity(text) {
        return Some(infinite);
    }
    let (text, is_before_christ) = match text.strip_suffix(" BC") {
        Some(text) => (text, true),
        None => (text, false),
    };
    let (year, rest) = text.split_once('-')?;
    let (month, rest) = rest.split_once('-')?;
    let (day, rest) = rest.split_at_checked(2)?;
    let year: i64 = number(year)?;
    let days = days_since_1970(if is_before_christ { 1 - year } else { year }, number(month)?, number(day)?);
    let clock = rest.strip_prefix(['T', ' ']).unwrap_or(rest);
    let clock_us = if clock.is_empty() {
        0
    } else {
        let (of_day, east_us) = clock_and_zone(clock)?;
        of_day - east_us
    };
    Some(i128::from(days) * DAY_US + clock_us)
}

/// Microseconds since midnight, which comes twice: 00:00 and 24:00.
pub(super) fn of_day(text: &str) -> Option<i128> {
    clock_and_zone(text).map(|(us, _)| us)
}

/// As Postgres orders them: by the moment, then the more easterly zone first.
pub(super) fn of_day_with_zone(text: &str) -> Option<i128> {
    let (us, east_us) = clock_and_zone(text)?;
    Some(((us - east_us) << 40) - east_us / 1_000_000)
}

/// Microseconds, by Postgres' rule for comparing: a month has 30 days and a day 24 hours. `P1Y2M-3DT-4H5M6.007S`.
pub(super) fn interval(text: &str) -> Option<i128> {
    if let Some(infinite) = infinity(text) {
        return Some(infinite);
    }
    let mut rest = text.strip_prefix('P')?;
    let mut is_time = false;
    let mut total = 0;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('T') {
            is_time = true;
            rest = after;
            continue;
        }
        let end = rest.find(|c: char| c.is_ascii_alphabetic())?;
        let unit_us = match (rest.as_bytes()[end], is_time) {
            (b'Y', false) => 360 * DAY_US,
            (b'M', false) => 30 * DAY_US,
            (b'W', false) => 7 * DAY_US,
            (b'D', false) => DAY_US,
            (b'H', true) => 3_600_000_000,
            (b'M', true) => 60_000_000,
            (b'S', true) => 1_000_000,
            _ => return None,
        };
        let (is_negative, size) = match rest[..end].strip_prefix('-') {
            Some(size) => (true, size),
            None => (false, &rest[..end]),
        };
        let (whole, fraction) = size.split_once('.').unwrap_or((size, ""));
        let us = i128::from(number(whole)?) * unit_us + micros(fraction)? * unit_us / 1_000_000;
        total += if is_negative { -us } else { us };
        rest = &rest[end + 1..];
    }
    Some(total)
}

fn infinity(text: &str) -> Option<i128> {
    match text {
        "infinity" => Some(i128::MAX),
        "-infinity" => Some(i128::MIN),
        _ => None,
    }
}

/// `12:34:56.789+05:30:15`: microseconds of the day, and those that the zone lies east.
fn clock_and_zone(text: &str) -> Option<(i128, i128)> {
    let (clock, zone) = match text.find(['+', '-']) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let east = match zone.strip_prefix('-') {
        Some(west) => -clock_us(west)?,
        None if zone.is_empty() => 0,
        None => clock_us(&zone[1..])?,
    };
    Some((clock_us(clock)?, east))
}

/// `12`, `12:34`, `12:34:56.789` in microseconds.
fn clock_us(text: &str) -> Option<i128> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut seconds = 0;
    let mut unit = 3600;
    for part in whole.split(':') {
        seconds += i128::from(number(part)?) * unit;
        unit /= 60;
    }
    Some(seconds * 1_000_000 + micros(fraction)?)
}

/// The digits after a point, as millionths.
fn micros(fraction: &str) -> Option<i128> {
    let mut us = 0;
    for place in 0..6 {
        let digit = match fraction.as_bytes().get(place) {
            Some(byte) if byte.is_ascii_digit() => i128::from(byte - b'0'),
            Some(_) => return None,
            None => 0,
        };
        us = us * 10 + digit;
    }
    Some(us)
}

/// Digits only, unlike `parse`.
fn number(text: &str) -> Option<i64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// In the Gregorian calendar, also before there was one; the year 0 is 1 BC. After Howard Hinnant's `days_from_civil`.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_as_calendars_do() {
        for (text, days) in [("1970-01-01", 0), ("2000-03-01", 11_017), ("1969-12-31", -1), ("0001-01-01", -719_162)] {
            assert_eq!(moment(text), Some(days * DAY_US), "{text}");
        }
        assert_eq!(moment("0001-12-31 BC"), Some(-719_163 * DAY_US));
    }

    #[test]
    fn what_is_not_a_time_is_none() {
        for text in ["", "x", "2020-01", "2020-1x-01", "2020-01-01Tx", "2020-01-0é"] {
            assert_eq!(moment(text), None, "{text}");
        }
        for text in ["", "1Y", "P1", "P1X", "PT1Y", "P+1Y"] {
            assert_eq!(interval(text), None, "{text}");
        }
        assert_eq!(interval("P"), Some(0));
        assert_eq!((of_day("12:00:00"), of_day("12:xx")), (Some(DAY_US / 2), None));
    }
}
