//! Side-by-side timing for benchmarks on machines that are never quiet.
//!
//! Absolute times on a shared machine mean little; ratios within one run mean a lot. All cases of a
//! [`Comparison`] therefore run in turn, in short batches, for many rounds; each batch is divided by
//! its reference's batch of the *same* round, and the median of these ratios is reported with its
//! spread (the middle half). The cases rotate from round to round, so that none always runs first.
//! Time is the thread's own CPU time where a case asks for it ([`timed`]): being preempted costs nothing.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::OnceLock;
use std::time::Duration;

/// What the command line asks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// `--quick`: a smoke run; its figures mean nothing.
    pub quick: bool,
    /// `--json`: one JSON object a line instead of tables.
    pub json: bool,
}

impl Options {
    /// Reads the command line. `--bench`, which cargo adds, is accepted; anything unknown ends the
    /// program with status 2.
    pub fn from_args() -> Self {
        let mut options = Self::default();
        for arg in std::env::args().skip(1) {
            match arg.as_str() {
                "--quick" => options.quick = true,
                "--json" => options.json = true,
                "--bench" => {}
                _ => {
                    eprintln!("unknown argument {arg:?}: only --quick and --json are understood");
                    std::process::exit(2);
                }
            }
        }
        options
    }

    /// Prints what was measured by itself and not side by side: of several values the median, the least and
    /// the greatest.
    ///
    /// # Panics
    /// If one has no values.
    pub fn facts(&self, title: &str, facts: &[Fact]) {
        let mut text = String::new();
        let width = facts.iter().map(|f| f.name.chars().count()).max().unwrap_or(0);
        if !self.json {
            let _ = writeln!(text, "\n{title}{}", if self.quick { " (smoke run)" } else { "" });
        }
        for Fact { name, values, unit } in facts {
            let mut values = values.clone();
            values.sort_by(f64::total_cmp);
            let (least, greatest) = (values[0], values[values.len() - 1]);
            let median = quartiles(values)[1];
            let _ = if self.json {
                writeln!(
                    text,
                    "{{\"table\":\"{title}\",\"fact\":\"{name}\",\"unit\":\"{unit}\",\
                     \"median\":{median:.3},\"least\":{least:.3},\"greatest\":{greatest:.3}}}"
                )
            } else if least < greatest {
                writeln!(text, "  {name:width$}  {median:>10.2} {unit}  ({least:.2}–{greatest:.2})")
            } else {
                writeln!(text, "  {name:width$}  {median:>10.2} {unit}")
            };
        }
        // A closed pipe is the reader's choice.
        let _ = std::io::stdout().write_all(text.as_bytes());
    }

    /// Prints a line of explanation, unless the output is JSON.
    pub fn say(&self, text: impl std::fmt::Display) {
        if !self.json {
            println!("{text}");
        }
    }
}

/// What was measured by itself, once or several times.
#[derive(Clone, Debug)]
pub struct Fact {
    /// What it is.
    pub name: String,
    /// What it was, each time.
    pub values: Vec<f64>,
    /// The unit.
    pub unit: &'static str,
}

impl Fact {
    /// One that was measured once.
    pub fn once(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), values: vec![value], unit }
    }
}

/// Makes the compiler assume that everything reachable from `value` is read and changed here, without
/// an instruction: what was stored before must be in memory, what is loaded after comes from there.
#[inline(always)]
pub fn escape<T: ?Sized>(value: &T) {
    let pointer = std::ptr::from_ref(value).cast::<()>();
    // SAFETY: the assembly is a comment; only the compiler's knowledge changes.
    unsafe {
        std::arch::asm!("/* {0} */", in(reg) pointer, options(nostack, preserves_flags));
    }
}

/// CPU time that this thread has used.
pub fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec to a valid place.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(result, 0, "CLOCK_THREAD_CPUTIME_ID exists since Linux 2.6.12");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// CPU time of this thread that `run` took.
pub fn timed(run: impl FnOnce()) -> Duration {
    let start = thread_time();
    run();
    thread_time() - start
}

/// The CPUs that this process could use when it first asked.
fn cpus() -> &'static [usize] {
    static CPUS: OnceLock<Vec<usize>> = OnceLock::new();
    CPUS.get_or_init(|| {
        // SAFETY: an all-zero cpu_set_t is a valid empty set.
        let mut allowed: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes at most the given size to a set of that size.
        let result = unsafe { libc::sched_getaffinity(0, size_of_val(&allowed), &mut allowed) };
        assert_eq!(result, 0, "a thread may ask for its own CPUs");
        (0..libc::CPU_SETSIZE as usize)
            // SAFETY: the index is below CPU_SETSIZE.
            .filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &allowed) })
            .collect()
    })
}

/// Binds the calling thread to the `index`-th (modulo their number) of the CPUs that the process could
/// use at the first call, and answers how many there are.
pub fn pin(index: usize) -> usize {
    let cpus = cpus();
    // SAFETY: an all-zero cpu_set_t is a valid empty set.
    let mut one: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the CPU comes from a set of the same size.
    unsafe { libc::CPU_SET(cpus[index % cpus.len()], &mut one) };
    // A thread that is not bound makes the figures noisier, not wrong.
    // SAFETY: the kernel reads the given size of a set of that size.
    unsafe { libc::sched_setaffinity(0, size_of_val(&one), &one) };
    cpus.len()
}

/// Binds all threads of a process to one of those CPUs, as [`pin`] does, or to all of them.
pub fn pin_process(pid: u32, index: Option<usize>) {
    let cpus = cpus();
    // SAFETY: an all-zero cpu_set_t is a valid empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for (at, &cpu) in cpus.iter().enumerate() {
        if index.is_none_or(|index| index % cpus.len() == at) {
            // SAFETY: the CPU comes from a set of the same size.
            unsafe { libc::CPU_SET(cpu, &mut set) };
        }
    }
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    for task in tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()) {
        // As above, one that is not bound makes the figures noisier, not wrong.
        // SAFETY: the kernel reads the given size of a set of that size.
        unsafe { libc::sched_setaffinity(task, size_of_val(&set), &set) };
    }
}

/// Something measured: runs a number of iterations and answers how long they took.
type Run<'a> = Box<dyn FnMut(u64) -> Duration + 'a>;

/// What a case should not exceed.
#[derive(Clone, Copy, Debug)]
pub enum Budget {
    /// This many times its reference.
    Times(f64),
    /// This many nanoseconds more than its reference.
    Extra(f64),
}

struct Case<'a> {
    name: String,
    run: Run<'a>,
    against: usize,
    budget: Option<Budget>,
    note: &'static str,
}

/// Cases that are measured side by side. The first one is the reference unless a case names another.
pub struct Comparison<'a> {
    title: &'static str,
    cases: Vec<Case<'a>>,
    rounds: usize,
}

/// The figures of one case.
#[derive(Clone, Debug)]
pub struct Figure {
    /// The case.
    pub name: String,
    /// Median nanoseconds of one iteration.
    pub nanoseconds: f64,
    /// Name of the case that the ratio refers to.
    pub against: String,
    /// Median ratio to the reference of the same round, and the quartiles below and above.
    pub ratio: [f64; 3],
    /// Median of the nanoseconds beyond the reference of the same round.
    pub extra: f64,
    /// What should not be exceeded.
    pub budget: Option<Budget>,
    /// A remark.
    pub note: &'static str,
}

impl<'a> Comparison<'a> {
    /// An empty comparison.
    pub fn new(title: &'static str) -> Self {
        Self { title, cases: Vec::new(), rounds: 61 }
    }

    /// Has fewer rounds than usual, for cases that take long.
    pub fn rounds(&mut self, rounds: usize) {
        self.rounds = rounds;
    }

    /// Adds a case: `run` performs the given number of iterations and answers their time.
    pub fn case(&mut self, name: impl Into<String>, run: impl FnMut(u64) -> Duration + 'a) {
        self.cases.push(Case {
            name: name.into(),
            run: Box::new(run),
            against: 0,
            budget: None,
            note: "",
        });
    }

    /// Refers the last case to the case called `name` instead of the first.
    ///
    /// # Panics
    /// If there is none.
    pub fn against(&mut self, name: &str) {
        let at = self.cases.iter().position(|c| c.name == name).expect("a case by that name");
        self.last().against = at;
    }

    /// States how many times its reference the last case should not exceed.
    pub fn budget(&mut self, ratio: f64) {
        self.last().budget = Some(Budget::Times(ratio));
    }

    /// States how many nanoseconds more than its reference the last case should not exceed.
    pub fn budget_extra(&mut self, nanoseconds: f64) {
        self.last().budget = Some(Budget::Extra(nanoseconds));
    }

    /// Adds a remark to the last case.
    pub fn note(&mut self, note: &'static str) {
        self.last().note = note;
    }

    fn last(&mut self) -> &mut Case<'a> {
        self.cases.last_mut().expect("a case was added")
    }

    /// Measures all cases, prints the table (or the JSON lines) and answers the figures in order.
    pub fn run(mut self, options: Options) -> Vec<Figure> {
        let (batch, rounds) = if options.quick {
            (Duration::from_micros(100), self.rounds.min(3))
        } else {
            (Duration::from_millis(2), self.rounds)
        };
        let iterations: Vec<u64> =
            self.cases.iter_mut().map(|case| calibrate(&mut case.run, batch)).collect();

        let count = self.cases.len();
        // times[case][round], nanoseconds of one iteration.
        let mut times = vec![Vec::with_capacity(rounds); count];
        for round in 0..rounds {
            for step in 0..count {
                let at = (round + step) % count;
                let time = (self.cases[at].run)(iterations[at]);
                times[at].push(time.as_secs_f64() * 1e9 / iterations[at] as f64);
            }
        }

        let figures: Vec<Figure> = self
            .cases
            .iter()
            .enumerate()
            .map(|(at, case)| {
                let reference = &times[case.against];
                let pairs = || times[at].iter().zip(reference);
                Figure {
                    name: case.name.clone(),
                    nanoseconds: quartiles(times[at].clone())[1],
                    against: self.cases[case.against].name.clone(),
                    ratio: quartiles(pairs().map(|(own, its)| own / its).collect()),
                    extra: quartiles(pairs().map(|(own, its)| own - its).collect())[1],
                    budget: case.budget,
                    note: case.note,
                }
            })
            .collect();
        report(self.title, &figures, options);
        figures
    }
}

/// The number of iterations that take about `batch`; also warms the case up.
fn calibrate(run: &mut Run<'_>, batch: Duration) -> u64 {
    let mut iterations = 1;
    loop {
        let time = run(iterations);
        if time >= batch / 2 || iterations >= 1 << 40 {
            let scale = batch.as_secs_f64() / time.as_secs_f64().max(1e-9);
            return ((iterations as f64 * scale) as u64).max(1);
        }
        iterations *= 2;
    }
}

/// The lower quartile, the median and the upper quartile.
///
/// # Panics
/// If there are no values.
pub fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    let last = values.len() - 1;
    [last / 4, last / 2, last - last / 4].map(|at| values[at])
}

/// Prints figures as a table or as JSON lines.
pub fn report(title: &str, figures: &[Figure], options: Options) {
    let mut text = String::new();
    if options.json {
        for f in figures {
            let [low, median, high] = f.ratio;
            let budget = match f.budget {
                None => "null".to_string(),
                Some(Budget::Times(ratio)) => format!("{{\"ratio\":{ratio}}}"),
                Some(Budget::Extra(ns)) => format!("{{\"extra_ns\":{ns}}}"),
            };
            // Names are literals of the benchmarks, without quotes and backslashes.
            let _ = writeln!(
                text,
                "{{\"table\":\"{title}\",\"case\":\"{}\",\"ns\":{:.3},\"against\":\"{}\",\
                 \"ratio\":{median:.3},\"ratio_low\":{low:.3},\"ratio_high\":{high:.3},\
                 \"extra_ns\":{:.3},\"budget\":{budget}}}",
                f.name, f.nanoseconds, f.against, f.extra
            );
        }
    } else {
        let width = figures.iter().map(|f| f.name.chars().count()).max().unwrap_or(0);
        let _ = writeln!(text, "\n{title}{}", if options.quick { " (smoke run)" } else { "" });
        let _ =
            writeln!(text, "  {:width$}  {:>10}  {:>6}  {:^15}", "", "ns", "ratio", "middle half");
        for f in figures {
            let [low, median, high] = f.ratio;
            let _ = write!(
                text,
                "  {:width$}  {:>10.2}  {median:>6.2}  {:^15}",
                f.name,
                f.nanoseconds,
                format!("{low:.2}–{high:.2}")
            );
            if f.against != figures[0].name && f.against != f.name {
                let _ = write!(text, "  against {}", f.against);
            }
            let verdict = |within: bool| if within { "within budget" } else { "OVER BUDGET" };
            let _ = match f.budget {
                None => Ok(()),
                Some(Budget::Times(most)) => write!(text, "  {} {most}", verdict(median <= most)),
                Some(Budget::Extra(most)) => {
                    write!(text, "  {:+.2} ns: {} {most:+} ns", f.extra, verdict(f.extra <= most))
                }
            };
            if !f.note.is_empty() {
                let _ = write!(text, "  {}", f.note);
            }
            let _ = writeln!(text);
        }
    }
    // A closed pipe is the reader's choice.
    let _ = std::io::stdout().write_all(text.as_bytes());
}
