-- One page of a feed's log, with the head as it is at that moment.
-- ARGV: prefix, feed, the version after which entries are wanted, the id from which this page goes on (exclusive if it
-- begins with '('), the most items and the most bytes of states of a page (the last one may go beyond).
-- Returns the head (epoch, version, cut, as_of, since, the feed's last version), the items, and 1 if more may follow.
local key = ARGV[1] .. ARGV[2] .. ':log'
local head = redis.call('HMGET', ARGV[1] .. 'head', 'epoch', 'version', 'cut', 'as_of', 'since', 'last:' .. ARGV[2])
local last = head[6]
if not head[2] or not last or tonumber(last) <= tonumber(ARGV[3]) then
  return { head, {}, 0 }
end
local from, items_max, bytes_max = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local items, bytes = {}, 0
while true do
  -- An end without a part stands for the last part of the version: nothing above the head is read.
  local found = redis.call('XRANGE', key, from, head[2], 'COUNT', 16)
  for _, item in ipairs(found) do
    items[#items + 1] = item
    for i = 1, #item[2] do
      bytes = bytes + #item[2][i]
    end
    if #items >= items_max or bytes >= bytes_max then
      return { head, items, 1 }
    end
  end
  if #found < 16 then
    return { head, items, 0 }
  end
  from = '(' .. found[#found][1]
end
