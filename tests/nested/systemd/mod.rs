//! The server as a service of a real systemd, with the unit and all that comes with it as they are installed.

mod killed;
mod limits;
mod stopped;
mod textfile;
pub mod unit;

use tests::nested::{Init, Suite};

/// The unit.
const SERVICE: &str = include_str!("../../../resources/systemd/statsfs.service");

/// Lists functions by their names.
macro_rules! functions {
    ($($module:ident: $($function:ident)*;)*) => {
        &[$($((
            concat!("systemd::", stringify!($module), "::", stringify!($function)),
            $module::$function as fn(),
        ),)*)*]
    };
}

/// Where a distribution's package would put them, and as `systemctl enable` leaves it.
pub const SUITE: Suite = Suite {
    init: Init::Systemd,
    functions: functions! {
        limits:
            the_service_is_there_after_boot
            it_has_what_its_unit_grants_and_no_more
            its_groups_members_publish_and_read;
        killed:
            nobody_notices_that_the_server_was_killed;
        stopped:
            a_stopped_server_leaves_nothing_and_the_next_one_knows_what_it_knew;
        textfile:
            the_timer_has_it_written_again_and_again_and_removed_when_there_is_no_server;
    },
    commands: &["vmm", "statsfs"],
    packages: &["systemd"],
    files: &[
        ("usr/lib/systemd/system/statsfs.service", SERVICE),
        (
            "usr/lib/systemd/system/statsfs-textfile.service",
            include_str!("../../../resources/systemd/statsfs-textfile.service"),
        ),
        (
            "usr/lib/systemd/system/statsfs-textfile.timer",
            include_str!("../../../resources/systemd/statsfs-textfile.timer"),
        ),
        (
            "usr/lib/sysusers.d/statsfs.conf",
            include_str!("../../../resources/sysusers.d/statsfs.conf"),
        ),
        (
            "usr/lib/tmpfiles.d/statsfs.conf",
            include_str!("../../../resources/tmpfiles.d/statsfs.conf"),
        ),
    ],
    links: &[
        ("usr/bin/statsfs", "/nested/bin/statsfs"),
        (
            "etc/systemd/system/multi-user.target.wants/statsfs.service",
            "/usr/lib/systemd/system/statsfs.service",
        ),
    ],
    alone: true,
    ..Suite::EMPTY
};
