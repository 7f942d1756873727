-- Writes parts of one version and, with the last of them, lets it take effect.
--
-- What has been written when a script fails stays written, so everything that can be refused, or that can fail on a key
-- of another type, is looked at first; from "the first write" on nothing is expected to fail. Numbers stay the texts
-- they came as: Lua would write large ones with an exponent.
--
-- Keys under the prefix, besides those that DESIGN names:
--   head   also has catalogue, since (the base of the append that made it) and last:<feed> (its last entry's version)
--   open   hash: feed -> <version>-<parts>, what a version that is not closed has written so far
--   clock  sorted set: as_of -> version, a mark now and then, to trim the log by age
--
-- ARGV: prefix, fence, head's epoch ('' for no head), head's version, the version after it, base, epoch, version, cut,
-- as_of, the entry's common fields as JSON members; then the lists below, each preceded by its length.
-- Returns 'ok', 'stale', 'moved', or 'behind <stream> <id>' where a stream has an id not below the new one.

local prefix, fence, head_epoch, head_version, above = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local base, epoch, version, cut, as_of, common = ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11]
local fence_key, head_key = prefix .. 'fence', prefix .. 'head'
local open_key, clock_key = prefix .. 'open', prefix .. 'clock'

local place = 11
local function take()
  place = place + 1
  return ARGV[place]
end

local function log_key(feed)
  return prefix .. feed .. ':log'
end

local function last_id(feed)
  if redis.call('EXISTS', log_key(feed)) == 0 then
    return '0', '0'
  end
  local info = redis.call('XINFO', 'STREAM', log_key(feed))
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      return string.match(info[i + 1], '^(%d+)-(%d+)$')
    end
  end
end

-- Is this the newest leader, and is the head the one it knows?
if redis.call('GET', fence_key) ~= fence then
  return 'stale'
end
local head = redis.call('HMGET', head_key, 'epoch', 'version', 'since')
if (head[1] or '') ~= head_epoch or (head[2] or '0') ~= head_version then
  return 'moved'
end
local since = head[3] or base

-- What versions that were never closed have left: of this one, how far it is; of others, where to clean up.
local counts, orphaned = {}, {}
local open = redis.call('HGETALL', open_key)
for i = 1, #open, 2 do
  local open_version, count = string.match(open[i + 1], '^(%d+)-(%d+)$')
  if open_version == version then
    counts[open[i]] = tonumber(count)
  else
    orphaned[#orphaned + 1] = open[i]
  end
end

-- Parts: feed, number, states. Each continues what is there, in streams that stand below it.
local parts, checked = {}, {}
for i = 1, tonumber(take()) do
  local part = { feed = take(), number = take(), states = take() }
  parts[i] = part
  if tonumber(part.number) ~= (counts[part.feed] or 0) then
    return 'moved'
  end
  counts[part.feed] = tonumber(part.number) + 1
  if not checked[part.feed] then
    checked[part.feed] = true
    local last_version, last_part = last_id(part.feed)
    local ascends = tonumber(last_version) < tonumber(version)
      or (last_version == version and tonumber(last_part) < tonumber(part.number))
    if not ascends then
      return 'behind ' .. part.feed .. ' ' .. last_version .. '-' .. last_part
    end
  end
end

-- A closing: catalogue, beat, age limit in milliseconds, its cutoff (as_of minus limit), parts limit; feeds touched with
-- the number of their parts; feeds to forget.
local closes = take() == '1'
local touched, forgotten = {}, {}
local catalogue, beat, age_ms, cutoff, parts_max
if closes then
  catalogue, beat, age_ms, cutoff, parts_max = take(), take(), take(), take(), take()
  local named = {}
  for i = 1, tonumber(take()) do
    local feed, count = take(), tonumber(take())
    touched[i], named[feed] = feed, true
    if counts[feed] ~= count then
      return 'moved'
    end
  end
  for feed in pairs(counts) do
    if not named[feed] then
      return 'moved'
    end
  end
  for i = 1, tonumber(take()) do
    forgotten[i] = take()
  end
end
redis.call('ZCARD', clock_key)

-- The first write.
for _, feed in ipairs(orphaned) do
  local key = log_key(feed)
  local found = redis.call('XRANGE', key, above, '+', 'COUNT', 16)
  while #found > 0 do
    for _, item in ipairs(found) do
      redis.call('XDEL', key, item[1])
    end
    found = redis.call('XRANGE', key, above, '+', 'COUNT', 16)
  end
end
redis.call('DEL', open_key)

-- What is being written is noted before it is written: whatever interrupts us, the next append finds it.
for feed, count in pairs(counts) do
  redis.call('HSET', open_key, feed, version .. '-' .. count)
end
for _, part in ipairs(parts) do
  local prev = redis.call('HGET', head_key, 'last:' .. part.feed) or since
  redis.call('XADD', log_key(part.feed), version .. '-' .. part.number, 'prev', prev, 'cut', cut, 'states', part.states,
    'epoch', epoch, 'base', base, 'as_of', as_of)
  redis.call('PUBLISH', prefix .. part.feed .. ':live',
    '{' .. common .. ',"part":' .. part.number .. ',"prev":' .. prev .. ',"states":' .. part.states .. '}')
end

if not closes then
  return 'ok'
end

redis.call('HSET', head_key, 'epoch', epoch, 'version', version, 'cut', cut, 'as_of', as_of, 'catalogue', catalogue,
  'since', since)
redis.call('DEL', open_key)
for _, feed in ipairs(touched) do
  redis.call('HSET', head_key, 'last:' .. feed, version)
  redis.call('XTRIM', log_key(feed), 'MAXLEN', parts_max)
end
for _, feed in ipairs(forgotten) do
  redis.call('DEL', log_key(feed))
  redis.call('HDEL', head_key, 'last:' .. feed)
end

-- By age: sixty marks span the limit. With a new mark, every log loses what lies before the newest mark older than it.
redis.call('ZREMRANGEBYSCORE', clock_key, '(' .. as_of, '+inf')
local newest = redis.call('ZREVRANGE', clock_key, 0, 0, 'WITHSCORES')
if #newest == 0 or tonumber(as_of) - tonumber(newest[2]) >= tonumber(age_ms) / 60 then
  redis.call('ZADD', clock_key, as_of, version)
  local old = redis.call('ZREVRANGEBYSCORE', clock_key, cutoff, '-inf', 'WITHSCORES', 'LIMIT', 0, 1)
  if #old > 0 then
    for _, field in ipairs(redis.call('HKEYS', head_key)) do
      local feed = string.match(field, '^last:(.+)$')
      if feed then
        redis.call('XTRIM', log_key(feed), 'MINID', old[1])
      end
    end
    redis.call('ZREMRANGEBYSCORE', clock_key, '-inf', '(' .. old[2])
  end
end

redis.call('PUBLISH', prefix .. 'beat', beat)
return 'ok'
