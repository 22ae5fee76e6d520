//! A cursor over the bytes of a file that never leaves them.

/// Reads little-endian numbers and strings; says what is wrong in words that follow a file's name.
#[derive(Debug, Clone)]
pub(crate) struct Scan<'b> {
    bytes: &'b [u8],
    at: usize,
}

/// What a cut file is told.
pub(crate) const CUT: &str = "ends too early. Download it again";

impl<'b> Scan<'b> {
    pub fn new(bytes: &'b [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    /// Where the next byte lies.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Bytes that are left.
    pub fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'b [u8], String> {
        let end = self.at.checked_add(n);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| CUT.to_owned())?;
        self.at += n;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let bytes = self.take(N)?;
        bytes.try_into().map_err(|_| CUT.to_owned())
    }

    pub fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A number of things that take at least `least` bytes each, of which the file has room for.
    pub fn count(&mut self, least: usize, what: &str) -> Result<usize, String> {
        let (count, room) = (self.u64()?, self.left() / least.max(1));
        match usize::try_from(count).ok().filter(|n| *n <= room) {
            Some(count) => Ok(count),
            None => Err(format!(
                "says that it has {count} {what}, more than its size has room for. Download it again"
            )),
        }
    }

    /// The bytes of a string of at most `longest` bytes.
    pub fn string(&mut self, longest: usize, what: &str) -> Result<&'b [u8], String> {
        let length = self.u64()?;
        match usize::try_from(length).ok().filter(|n| *n <= longest) {
            Some(length) => self.take(length),
            None => Err(format!(
                "has {what} of {length} bytes, more than the {longest} that dlc reads. Download it again"
            )),
        }
    }
}
