//! GRUB menus: `grub.cfg`, `user.cfg`, `custom.cfg`.
//!
//! A menu is a script, and is not run here. Every statement is taken for one that may boot something,
//! whatever conditions it stands under; words are split as GRUB splits them (GRUB manual, "quoting"), and
//! variables stay as they are.

use composefs_image::VerityDigest;
use composefs_image::karg::ArgumentError;

use super::artifact::{self, UkiName};
use super::bls;

/// What a statement of a menu boots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Statement {
    /// The images that its words name as kernel arguments do.
    pub(crate) images: Vec<VerityDigest>,
    /// Kernel directories that it names.
    pub(crate) kernels: Vec<String>,
    /// EFI programs that it names: paths without a device.
    pub(crate) programs: Vec<String>,
}

/// A menu.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Menu {
    /// The statements that may boot something.
    pub(crate) statements: Vec<Statement>,
    /// How many entries the menu has.
    pub(crate) entries: usize,
    /// What can't be understood; the rest is.
    pub(crate) faults: Vec<MenuFault>,
}

/// What is wrong with a menu.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MenuFault {
    /// A kernel argument.
    #[error(transparent)]
    Argument(#[from] ArgumentError),
    /// The name of a unified kernel image.
    #[error("{0:?} has bootc's prefix and no digest after it")]
    Name(String),
    /// It ends within an entry or a quotation.
    #[error("it ends within an entry: it was cut off")]
    Truncated,
}

/// Reads a menu.
pub(crate) fn parse(text: &[u8]) -> Menu {
    let mut menu = Menu::default();
    let mut words = Words {
        text,
        position: 0,
        depth: 0,
        cut: false,
    };
    let mut statement = Vec::new();
    loop {
        match words.next() {
            Token::Word(word) => statement.push(word),
            Token::EndOfStatement => menu.take(&std::mem::take(&mut statement)),
            Token::EndOfFile => {
                menu.take(&statement);
                let entry = statement.first().is_some_and(|word| word == b"menuentry");
                if words.cut || words.depth > 0 || entry {
                    menu.faults.push(MenuFault::Truncated);
                }
                return menu;
            }
        }
    }
}

impl Menu {
    fn take(&mut self, words: &[Vec<u8>]) {
        let Some(command) = words.first() else {
            return;
        };
        if command == b"menuentry" {
            self.entries += 1;
            // What follows is a title and the like.
            return;
        }
        let mut statement = Statement::default();
        let parts = words.iter().flat_map(|word| {
            word.split(u8::is_ascii_whitespace)
                .filter(|part| !part.is_empty())
        });
        for part in parts {
            // As in `set kernelopts="composefs=… rw"`.
            let argument = match part.windows(11).position(|window| window == b"=composefs=") {
                Some(position) => &part[position + 1..],
                None => match part
                    .windows(18)
                    .position(|window| window == b"=composefs.digest=")
                {
                    Some(position) => &part[position + 1..],
                    None => part,
                },
            };
            match bls::images(argument) {
                Ok(images) => statement.images.extend(images),
                Err(error) => self.faults.push(error.into()),
            }
            let path = String::from_utf8_lossy(part);
            // A device, as in `(hd0,gpt1)/EFI`.
            let path = match path.split_once(')') {
                Some((device, path)) if device.starts_with('(') => path,
                _ => &path,
            };
            if let Some(directory) = artifact::kernel_directory(path) {
                statement.kernels.push(directory.to_owned());
            }
            if artifact::is_efi(path) {
                statement.programs.push(path.to_owned());
            } else if artifact::uki_name(artifact::file_name(path)) == UkiName::Malformed {
                self.faults.push(MenuFault::Name(path.to_owned()));
            }
        }
        if statement != Statement::default() {
            self.statements.push(statement);
        }
    }
}

enum Token {
    Word(Vec<u8>),
    EndOfStatement,
    EndOfFile,
}

struct Words<'a> {
    text: &'a [u8],
    position: usize,
    /// Open braces.
    depth: usize,
    /// The text ended within a quotation.
    cut: bool,
}

impl Words<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.position).copied()
    }

    fn take(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.position += 1;
        Some(byte)
    }

    fn next(&mut self) -> Token {
        loop {
            match self.peek() {
                None => return Token::EndOfFile,
                Some(b' ' | b'\t' | b'\r') => self.position += 1,
                Some(b'#') => {
                    while self.peek().is_some_and(|byte| byte != b'\n') {
                        self.position += 1;
                    }
                }
                Some(b'\n' | b';' | b'&' | b'|') => {
                    self.position += 1;
                    return Token::EndOfStatement;
                }
                Some(b'{') => {
                    self.position += 1;
                    self.depth += 1;
                    return Token::EndOfStatement;
                }
                Some(b'}') => {
                    self.position += 1;
                    self.depth = self.depth.saturating_sub(1);
                    return Token::EndOfStatement;
                }
                Some(_) => return Token::Word(self.word()),
            }
        }
    }

    fn word(&mut self) -> Vec<u8> {
        let mut word = Vec::new();
        while let Some(byte) = self.peek() {
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' | b';' | b'&' | b'|' | b'{' | b'}' => break,
                b'\\' => {
                    self.position += 1;
                    match self.take() {
                        Some(b'\n') | None => {}
                        Some(escaped) => word.push(escaped),
                    }
                }
                b'\'' | b'"' => {
                    self.position += 1;
                    self.quotation(byte, &mut word);
                }
                b'$' if self.text.get(self.position + 1) == Some(&b'{') => {
                    self.variable(&mut word);
                }
                _ => {
                    self.position += 1;
                    word.push(byte);
                }
            }
        }
        word
    }

    fn quotation(&mut self, quote: u8, word: &mut Vec<u8>) {
        loop {
            match self.take() {
                None => {
                    self.cut = true;
                    return;
                }
                Some(byte) if byte == quote => return,
                Some(b'\\') if quote == b'"' => word.extend(self.take()),
                Some(byte) => word.push(byte),
            }
        }
    }

    fn variable(&mut self, word: &mut Vec<u8>) {
        while let Some(byte) = self.take() {
            word.push(byte);
            if byte == b'}' {
                return;
            }
        }
        self.cut = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(byte: &str) -> String {
        byte.repeat(64)
    }

    fn user_cfg(ids: &[&str]) -> String {
        let mut text = "\nif [ -f ${config_directory}/efiuuid.cfg ]; then\n        \
             source ${config_directory}/efiuuid.cfg\nfi\n"
            .to_owned();
        for id in ids {
            let entry = format!(
                "menuentry \"Example 42: ({id})\" {{\ninsmod fat\ninsmod chain\n\
                 search --no-floppy --set=root --fs-uuid \"${{EFI_PART_UUID}}\"\n\
                 chainloader /EFI/Linux/bootc/bootc_composefs-{id}.efi\n}}\n"
            );
            text.push_str(&entry);
        }
        text
    }

    #[test]
    fn the_user_cfg_of_bootc_is_understood() {
        let menu = parse(user_cfg(&[&hex("0a"), &hex("0b")]).as_bytes());
        assert_eq!((menu.entries, menu.faults.len()), (2, 0));
        let programs: Vec<_> = menu
            .statements
            .iter()
            .flat_map(|statement| &statement.programs)
            .collect();
        assert_eq!(programs.len(), 2);
        assert!(programs[1].ends_with(&format!("bootc_composefs-{}.efi", hex("0b"))));
    }

    #[test]
    fn a_menu_that_is_cut_off_anywhere_within_its_entries_is_noticed() {
        let text = user_cfg(&[&hex("0a"), &hex("0b")]);
        let first = text.find("menuentry").unwrap() + "menuentry \"".len();
        let whole: Vec<usize> = text.match_indices("}\n").map(|(at, _)| at + 1).collect();
        for end in first..text.len() - 1 {
            let menu = parse(&text.as_bytes()[..end]);
            // Between two entries a file is as good as a shorter one.
            let between = whole
                .iter()
                .any(|at| (*at..=*at + "\nmenuentr".len()).contains(&end));
            assert_eq!(!menu.faults.is_empty(), !between, "{:?}", &text[..end]);
        }
    }

    #[test]
    fn kernel_arguments_are_found_however_they_are_quoted() {
        let digest = VerityDigest::from_hex(&hex("0a")).unwrap();
        let kernel = format!("/bootc_composefs-{digest}/vmlinuz");
        for line in [
            format!("linux {kernel} rw composefs={digest}"),
            format!("menuentry 'a' --id b {{ linux ($root){kernel} \"composefs=?{digest}\" rw; }}"),
            format!("set kernelopts=\"composefs={digest} rw\""),
            format!("set kernelopts='rw composefs={digest}'"),
            format!("if true; then linux x \\\n composefs={digest}; fi"),
        ] {
            let menu = parse(line.as_bytes());
            assert_eq!(menu.faults, [], "{line}");
            assert_eq!(menu.statements.len(), 1, "{line}: {menu:?}");
            assert_eq!(menu.statements[0].images, [digest], "{line}");
        }
        let menu = parse(format!("# linux x composefs={digest}\necho done").as_bytes());
        assert_eq!(menu.statements, []);
        let menu = parse(format!("linux {kernel} composefs={digest}").as_bytes());
        assert_eq!(
            menu.statements[0].kernels,
            [format!("bootc_composefs-{digest}")]
        );
    }

    #[test]
    fn arguments_and_names_that_are_no_digest_are_faults() {
        for text in [
            "linux /vmlinuz composefs=0a0a",
            "linux /vmlinuz composefs.digest=v3-sha512-12:00",
            "chainloader /EFI/Linux/bootc/bootc_composefs-0a0a",
        ] {
            assert_eq!(parse(text.as_bytes()).faults.len(), 1, "{text}");
        }
    }
}
