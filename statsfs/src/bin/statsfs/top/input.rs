//! What keys and the mouse mean.

use crossterm::event::{
    Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers, MouseButton, MouseEvent, MouseEventKind,
};

/// What the user wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Quit,
    Help,
    /// Into what is selected.
    Enter,
    /// Out of what was entered; first off what is over the screen.
    Back,
    /// So many rows down.
    Move(isize),
    /// So many screens down.
    Page(isize),
    First,
    Last,
    /// So many tabs to the right.
    Tab(isize),
    /// By the column so many to the right.
    SortBy(isize),
    Reverse,
    /// A longer interval, or a shorter one.
    Slower(isize),
    Pause,
    /// A look now.
    Look,
    /// Totals from now on, or all that there is.
    Zero(bool),
    /// Exits and times over the interval, or over all that totals are of.
    Span,
    /// Only rows where something happened, or all.
    SkipZero,
    /// A filter is typed.
    Type,
    Typed(char),
    Untype,
    /// It is typed, and stays or not.
    EndTyping(bool),
    /// There, by column and row of the screen.
    Click(u16, u16),
    /// The screen has so many columns and rows.
    Size(u16, u16),
}

/// What is wanted by something that was typed or clicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    Act(Action),
    /// The program is to stop until it is continued.
    Suspend,
}

/// What an event means while a filter is typed, or is not.
pub fn meaning(event: &Event, is_typing: bool) -> Option<Input> {
    match event {
        Event::Key(key) if key.kind != KeyEventKind::Release => {
            if key.modifiers.contains(KeyModifiers::CONTROL) {
                return control(key.code);
            }
            let action = if is_typing { typed(key) } else { command(key.code) };
            action.map(Input::Act)
        }
        Event::Mouse(mouse) => mouse_action(mouse).map(Input::Act),
        Event::Resize(width, height) => Some(Input::Act(Action::Size(*width, *height))),
        _ => None,
    }
}

fn control(code: KeyCode) -> Option<Input> {
    Some(match code {
        KeyCode::Char('c') => Input::Act(Action::Quit),
        KeyCode::Char('z') => Input::Suspend,
        KeyCode::Char('l') => Input::Act(Action::Look),
        KeyCode::Char('d' | 'f') => Input::Act(Action::Page(1)),
        KeyCode::Char('u' | 'b') => Input::Act(Action::Page(-1)),
        _ => return None,
    })
}

fn typed(key: &KeyEvent) -> Option<Action> {
    Some(match key.code {
        KeyCode::Enter => Action::EndTyping(true),
        KeyCode::Esc => Action::EndTyping(false),
        KeyCode::Backspace => Action::Untype,
        // The list is there meanwhile.
        KeyCode::Up => Action::Move(-1),
        KeyCode::Down => Action::Move(1),
        KeyCode::Char(char) if !char.is_control() => Action::Typed(char),
        _ => return None,
    })
}

fn command(code: KeyCode) -> Option<Action> {
    Some(match code {
        KeyCode::Char('q') => Action::Quit,
        KeyCode::Char('?') | KeyCode::F(1) => Action::Help,
        KeyCode::Enter | KeyCode::Right | KeyCode::Char('l') => Action::Enter,
        KeyCode::Esc | KeyCode::Left | KeyCode::Backspace | KeyCode::Char('h') => Action::Back,
        KeyCode::Up | KeyCode::Char('k') => Action::Move(-1),
        KeyCode::Down | KeyCode::Char('j') => Action::Move(1),
        KeyCode::PageUp => Action::Page(-1),
        KeyCode::PageDown => Action::Page(1),
        KeyCode::Home | KeyCode::Char('g') => Action::First,
        KeyCode::End | KeyCode::Char('G') => Action::Last,
        KeyCode::Tab => Action::Tab(1),
        KeyCode::BackTab => Action::Tab(-1),
        KeyCode::Char('s' | '>') => Action::SortBy(1),
        KeyCode::Char('S' | '<') => Action::SortBy(-1),
        KeyCode::Char('r') => Action::Reverse,
        KeyCode::Char('+' | '=') => Action::Slower(1),
        KeyCode::Char('-') => Action::Slower(-1),
        KeyCode::Char(' ' | 'p') => Action::Pause,
        KeyCode::Char('z') => Action::Zero(true),
        KeyCode::Char('Z') => Action::Zero(false),
        KeyCode::Char('t') => Action::Span,
        KeyCode::Char('n') => Action::SkipZero,
        KeyCode::Char('/') => Action::Type,
        _ => return None,
    })
}

fn mouse_action(mouse: &MouseEvent) -> Option<Action> {
    Some(match mouse.kind {
        MouseEventKind::ScrollUp => Action::Move(-3),
        MouseEventKind::ScrollDown => Action::Move(3),
        MouseEventKind::Down(MouseButton::Left) => Action::Click(mouse.column, mouse.row),
        MouseEventKind::Down(MouseButton::Right) => Action::Back,
        _ => return None,
    })
}
