use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn mean(watts: f64) -> Seen {
    Seen { watts, is_mean: true, instant_watts: Some(watts) }
}

fn instant(watts: f64) -> Seen {
    Seen { watts, is_mean: false, instant_watts: None }
}

/// A board that is read every `step`, each reading in full.
struct Board {
    horizon: Horizon,
    step: Duration,
    at: Duration,
    counter: u64,
    integrated: u64,
    unread: u64,
}

impl Board {
    fn new(step: Duration) -> Self {
        Self { horizon: Horizon::default(), step, at: SECOND, counter: 0, integrated: 0, unread: 0 }
    }

    /// Reads `seen` for a time in which both meters count that.
    fn go_on(&mut self, time: Duration, seen: Seen) {
        let until = self.at + time;
        while self.at < until {
            self.at += self.step;
            let microjoules = (seen.watts * self.step.as_secs_f64() * 1e6) as u64;
            self.counter += microjoules;
            self.integrated += microjoules;
            self.read(seen);
        }
    }

    fn read(&mut self, seen: Seen) {
        self.horizon.note(seen, self.unread, self.at);
        self.close();
    }

    fn close(&mut self) {
        let (at, counter, integrated) = (self.at, Some(self.counter), self.integrated);
        self.horizon.close(Meters { at, counter, integrated });
    }

    fn random(&self, attention: Attention) -> [f64; 2] {
        let EnergyUncertainty { counter, integrated } = self.horizon.state(attention);
        [counter, integrated].map(|half_width| half_width.map_or(f64::NAN, |h| h.random))
    }
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-2 * b
}

#[test]
fn a_constant_load_is_off_by_the_gain_and_what_the_counter_has_not_shown_yet() {
    let mut board = Board::new(SECOND);
    board.go_on(2 * 60 * SECOND, mean(300.0));
    let stated = board.horizon.state(Attention::Full);
    let gain = stated.counter.unwrap().gain;
    // Shown 95 W, drawn 100 W.
    assert!((95.0 * (1.0 + gain) - 100.0).abs() < 1e-9, "{gain}");
    let [counter, integrated] = board.random(Attention::Full);
    assert!(near(counter, 0.1 / 60.0), "{counter}");
    assert!(near(integrated, 1e-3 / 300.0), "{integrated}");
    // 285 W and up to 1 mW more, shown of 300 W and as much more.
    let shown = 0.95 * 300.0 - 1e-3;
    assert!((shown * (1.0 + HalfWidth { gain, random: 1e-3 / shown }.ratio()) - 300.0).abs() < 1e-9);
}

#[test]
fn it_is_of_the_last_minute_however_often_it_is_read() {
    for step in [20, 100, 300, 1_000, 10_000].map(Duration::from_millis) {
        let mut board = Board::new(step);
        board.go_on(30 * SECOND, instant(900.0));
        board.go_on(59 * SECOND, instant(300.0));
        assert!(board.random(Attention::Part)[1] > 0.005, "{step:?}: it has the step");
        board.go_on(15 * SECOND, instant(300.0));
        assert!(board.random(Attention::Part)[1] < 1e-5, "{step:?}: the step is past");
        let span: Duration = board.horizon.parts.iter().map(|part| part.elapsed).sum();
        assert!(span.abs_diff(HORIZON) <= SECOND.max(step / 2), "{step:?}: {span:?}");
        assert!(board.horizon.parts.len() <= 67, "{step:?}: {}", board.horizon.parts.len());
    }
}

#[test]
fn samples_count_by_how_much_power_changes_between_them() {
    let mut board = Board::new(SECOND / 10);
    for reading in 0..1_200 {
        board.go_on(board.step, instant(if reading % 2 == 0 { 100.0 } else { 200.0 }));
    }
    // 600 changes of 100 W, each over 0.1 s, and 15 J at the ends.
    let samples = 3.0 * (3.0f64 / 8.0 * 600.0).sqrt() * 10.0;
    let [counter, integrated] = board.random(Attention::Part).map(|share| share * 150.0 * 60.0);
    assert!(near(integrated, samples.hypot(15.0) + 0.06), "{integrated}");
    assert!(near(counter, samples.hypot(20.0)), "{counter}");
    assert!(near(board.random(Attention::Full)[0] * 150.0 * 60.0, 20.0), "it looks all the time");
}

#[test]
fn a_counter_that_means_contradict_is_as_far_off() {
    let mut board = Board::new(SECOND);
    for _ in 0..60 {
        board.go_on(SECOND, mean(300.0));
        // It looks away when power is high, each time: no change of its readings shows that.
        board.counter -= 60_000_000;
    }
    let [counter, _] = board.random(Attention::Part);
    assert!(near(counter, 60.0 / 240.0), "{counter}");
    assert!(board.random(Attention::Full)[0] < 0.01, "a board that looks all the time has none of that");
}

#[test]
fn over_a_gap_it_is_of_what_was_metered() {
    let mut board = Board::new(SECOND);
    board.go_on(30 * SECOND, mean(300.0));
    board.go_on(20 * SECOND, mean(500.0));
    let whole = board.random(Attention::Part)[1];
    (board.at, board.unread) = (board.at + 5 * SECOND, 1);
    board.counter += 5 * 500_000_000;
    board.read(mean(500.0));
    let [counter, integrated] = board.random(Attention::Part);
    assert!(counter.is_nan(), "nothing says how far off it is");
    assert!(integrated > whole, "two ends more: {whole} {integrated}");
    assert!(board.random(Attention::Full)[0] < 0.01, "its own measure");
}

#[test]
fn what_is_not_known_is_not_stated() {
    let mut board = Board::new(SECOND);
    let stated = |board: &Board| board.random(Attention::Full).map(|random| !random.is_nan());
    assert_eq!(stated(&board), [false, false]);
    board.read(mean(300.0));
    assert_eq!(stated(&board), [false, false], "no time has passed");
    board.at += 5 * SECOND;
    board.read(mean(300.0));
    assert_eq!(stated(&board), [false, false], "no energy either");
    board.go_on(5 * SECOND, mean(300.0));
    assert_eq!(stated(&board), [true, true]);
    board.counter = 0;
    board.go_on(5 * SECOND, mean(300.0));
    assert_eq!(stated(&board), [false, true], "the counter began anew");
    board.horizon.forget();
    assert_eq!(stated(&board), [false, false]);
    board.go_on(5 * SECOND, mean(300.0));
    assert_eq!(stated(&board), [true, true]);
    board.go_on(SECOND, instant(300.0));
    assert_eq!(stated(&board), [false, false], "it tells another figure now");
}
