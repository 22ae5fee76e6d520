//! The protobuf wire format, field by field, without building anything: so that a hostile file
//! costs no more than its own size.

/// One field: its number and what it holds.
pub type Field<'a> = (u32, Payload<'a>);

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload<'a> {
    /// An integer.
    Number(u64),
    /// Text, bytes, a message or packed numbers.
    Bytes(&'a [u8]),
    /// A number of fixed width.
    Fixed(&'a [u8]),
}

/// The fields of a message, until its end or the first fault.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// The fields of a message.
    pub fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// The next number, where the message is packed numbers.
    pub fn number(&mut self) -> Option<Result<u64, &'static str>> {
        (!self.rest.is_empty()).then(|| self.varint())
    }

    fn varint(&mut self) -> Result<u64, &'static str> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let (&byte, rest) = self.rest.split_first().ok_or("it ends inside a number")?;
            self.rest = rest;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err("a number is longer than 64 bits");
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("a number is longer than 64 bits")
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8], &'static str> {
        let n = usize::try_from(n).map_err(|_| "a field is longer than the file")?;
        let (taken, rest) = self
            .rest
            .split_at_checked(n)
            .ok_or("it ends inside a field")?;
        self.rest = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Result<Field<'a>, &'static str> {
        let key = self.varint()?;
        let tag = u32::try_from(key >> 3)
            .ok()
            .filter(|tag| *tag > 0)
            .ok_or("a field has no valid number")?;
        let payload = match key & 7 {
            0 => Payload::Number(self.varint()?),
            1 => Payload::Fixed(self.take(8)?),
            2 => {
                let n = self.varint()?;
                Payload::Bytes(self.take(n)?)
            }
            5 => Payload::Fixed(self.take(4)?),
            _ => return Err("a field is of no known kind"),
        };
        Ok((tag, payload))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_and_faults_end_the_message() {
        let read = |bytes: &[u8]| format!("{:?}", Fields::new(bytes).collect::<Vec<_>>());
        assert_eq!(read(&[0x08, 0x96, 0x01]), "[Ok((1, Number(150)))]");
        assert_eq!(read(&[0x12, 0x02, 7, 8]), "[Ok((2, Bytes([7, 8])))]");
        assert_eq!(read(&[0x15, 1, 0, 0, 0]), "[Ok((2, Fixed([1, 0, 0, 0])))]");
        assert_eq!(
            read(&[0x08, 0x01, 0x12, 0x05, 7]),
            "[Ok((1, Number(1))), Err(\"it ends inside a field\")]"
        );
        assert_eq!(read(&[0x03]), "[Err(\"a field has no valid number\")]");
        assert_eq!(read(&[0x0b]), "[Err(\"a field is of no known kind\")]");
        assert_eq!(
            read(&[0xff; 11]),
            "[Err(\"a number is longer than 64 bits\")]"
        );
    }
}
